"""``python -m bench.design target=relu:4 [kind= basis= knots= radius= out=]``: kernel in, activation out.

Prints the certificate, draws the activation, its kernel and the error, and saves the activation as TorchScript, which
``torch.jit.load`` reads without this package.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import store
from bench.arguments import settings
from bench.report.figures import STYLE, new_figure
from models.design import Design, design

USE = (
    "use python -m bench.design target=relu:4 [kind=ntk|nngp] [basis=auto|hermite|piecewise_linear|erf_units] "
    "[knots=auto|1..8] [radius=1.0] [out=DIR]; a target is relu:L, erf:L or Taylor coefficients, as in 0,0.5,0,0.5"
)
DEFAULTS = {"target": "", "kind": "ntk", "basis": "auto", "knots": "auto", "radius": "1.0", "out": "designs"}
DPI = 150
LONGEST = 60
"""Characters of coefficients that a file's name may hold; longer lists go by a hash."""


def main(arguments: Sequence[str]) -> int:
    """Returns 0, or 2 where the settings are wrong: one sentence says which."""
    try:
        chosen = _settings(arguments)
        target = _target(chosen["target"])
        _check_out(Path(chosen["out"]))  # shows now, not after the work
        with warnings.catch_warnings(record=True) as cautions:
            warnings.simplefilter("always", UserWarning)
            made = design(
                target,
                chosen["kind"],
                chosen["basis"],
                _number("knots", chosen["knots"], int) if chosen["knots"] != "auto" else "auto",
                _number("radius", chosen["radius"], float),
            )
        print(f"activation             {made.activation.extra_repr()}")
        print(made.certificate)
        for caution in cautions:
            if issubclass(caution.category, UserWarning):
                print(f"warning: {str(caution.message).removeprefix('design: ')}")
        files = _save(made, chosen, Path(chosen["out"]))
    except (ValueError, OSError) as error:
        print(f"widebench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print("written: " + ", ".join(str(file) for file in files))
    return 0


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    found = settings(arguments, DEFAULTS, USE)
    if not found["target"]:
        raise ValueError(f"target is missing: {USE}.")
    return found


def _target(text: str) -> str | list[float]:
    """A name, or coefficients separated by commas."""
    if ":" in text:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"target={text} is neither a name nor coefficients: {USE}.") from None


def _number(field: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{field}={text} is no number: {USE}.") from None


def _check_out(out: Path) -> None:
    """Raises: ValueError where no file could be written there; makes nothing."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out={out} cannot be written: name another folder.")


def _stem(chosen: dict[str, str]) -> str:
    """The target, the kind and what else is not by default, so that no design takes the place of another."""
    name = chosen["target"].replace(":", "").replace(",", "_").replace(" ", "")
    if len(name) > LONGEST:
        name = f"coefficients-{store.settings_hash(chosen['target'])}"
    more = [f"-{key}{chosen[key]}" for key in ("basis", "knots", "radius") if chosen[key] != DEFAULTS[key]]
    return f"{name}-{chosen['kind']}{''.join(more)}"


def _save(made: Design, chosen: dict[str, str], out: Path) -> list[Path]:
    name, stem = chosen["target"], _stem(chosen)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written ({error.strerror}): name another folder.") from error
    picture, module, text = (out / f"{stem}.{end}" for end in ("png", "pt", "txt"))
    _draw(made, name, picture)
    with warnings.catch_warnings():  # deprecated, but the one format that takes inputs of any number of axes
        warnings.simplefilter("ignore")
        torch.jit.script(made.activation).save(str(module))
    text.write_text(f"target {name}\n{made.activation}\n{made.certificate}\n")
    return [picture, module, text]


def _draw(made: Design, name: str, file: Path) -> None:
    """Activation, kernel beside its target, and error."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(9, 2.8)
        left, middle, right = figure.subplots(1, 3)
        z = torch.linspace(-3 * made.radius, 3 * made.radius, 601, dtype=torch.float64)
        left.plot(z, made.activation(z), color="#0072b2")
        left.set(title="activation", xlabel="z")
        theta = torch.linspace(0, math.pi, 721, dtype=torch.float64)
        c = torch.cos(theta)
        circle = made.radius * math.sqrt(2) * torch.stack([c, torch.sin(theta)], 1)
        realised, target = made.kernel(circle[:1], circle)[0], made.target.kernel(c)
        middle.plot(c, target, color="#111111", label=f"target {name}" if len(name) <= LONGEST else "target")
        middle.plot(c, realised, color="#d55e00", linestyle="--", label="design")
        middle.set(title=made.kind.upper(), xlabel="cosine between inputs")
        middle.legend(frameon=False)
        right.plot(c, (realised - target) / made.certificate.at_one, color="#d55e00")
        right.axhline(0, color="#999999", linewidth=0.6)
        right.set(title="(design - target) / K(1)", xlabel="cosine between inputs")
        figure.tight_layout()
        figure.savefig(file, dpi=DPI)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
