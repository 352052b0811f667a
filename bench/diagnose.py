"""``diagnose``: is a kernel aligned with a task, what does theory predict, and where does a network depart from it.

``python -m bench.diagnose task=digits model.width=256 trainer.richness=3.0`` (settings as those of ``python -m bench``)
prints it for the infinite-width NTK, and for the NTK of a network of that cell before and after training.
``python -m bench.diagnose tasks=all [runs=DIR]`` prints the alignment of an infinite-width NTK with every task.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.compare import UnavailableError
from bench.compare.alignment import LEAST, alignment, area, chance, cumulative_power, power_at
from bench.compare.metrics import clean_labels, train_labels
from bench.compare.predictions import limit_of
from bench.ntk import empirical_ntk
from bench.predict import JITTER, KernelPredictor
from bench.theory.finite_population import finite_population
from bench.theory.inputs import float64
from bench.theory.sample import SampleSpectrum, sample_spectrum
from bench.trained import Trained
from models.checks import check_std
from models.limits import InfiniteWidth

EDGES = (0.0, 0.01, 0.1, 0.3, 1.0)
"""Of the bands of eigenmodes, as shares of the number of modes, from the largest eigenvalue on."""

DEPARTS = 0.1  # difference of learnt shares from which a band is named in the verdict
PRESENT = 0.01  # share of the target's power that a band must hold to be named
SURE = 3.0  # standard deviations of permuted labels from which a kernel is called aligned

_USE = (
    "use python -m bench.diagnose [key=value ...], with the settings of python -m bench of one cell, as in task=digits "
    "model.width=256; or python -m bench.diagnose tasks=all [runs=DIR]"
)

Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Band:
    """Some of a kernel's eigenmodes, on the points of the diagnosis.

    Attributes:
        low, high: which, as shares of their number, from the largest eigenvalue on.
        trace: their share of the kernel's trace.
        power: their share of the target's mean square.
        predicted: the share of that power that regression with the kernel on n points gets right on the other M - n, by
            eigenlearning. Without ridge the shares of all modes sum to 0, the conservation law (Simon et al. 2023):
            what is gained in some modes is lost in others, whose share is below 0.
        regression: that share for regression on the first n points.
        network: that share for the network; nan without one.
    """

    low: float
    high: float
    trace: float
    power: float
    predicted: float
    regression: float
    network: float


@dataclass(frozen=True)
class Diagnosis:
    """A kernel and a task. Printed, it is a table and a verdict. Errors are relative, ``|f - y|^2 / |y|^2``.

    Attributes:
        points: M, on which all is measured.
        n: training points of the predictions.
        alignment, chance: centred kernel-target alignment, and its mean over permuted labels.
        z: how many standard deviations over permutations it lies above that.
        power_tenth, power_area: the target's power in the leading tenth of the modes of the centred kernel, and the
            area under that curve (1/2 by chance).
        leave_one_out: error of regression with the kernel on M - 1 points, measured on the one left out.
        predicted: test error of regression on n points, by eigenlearning for n of M points without replacement.
        measured: that of regression on the first n points.
        bands: see ``Band``.
        network: test error of the network, trained on the first n points; nan without one.
    """

    points: int
    n: int
    alignment: float
    chance: float
    z: float
    power_tenth: float
    power_area: float
    leave_one_out: float
    predicted: float
    measured: float
    bands: tuple[Band, ...]
    network: float

    @property
    def verdict(self) -> str:
        """One or two sentences."""
        if self.z >= SURE:
            first = f"The kernel is aligned with the task (z = {self.z:.1f})."
        else:
            first = (
                f"The kernel is not aligned with the task beyond chance (z = {self.z:.1f}); what it learns all the "
                "same is in the predicted error."
            )
        departs = [
            band
            for band in self.bands
            if band.power >= PRESENT and abs(band.network - band.regression) >= DEPARTS  # nan: False
        ]
        if departs:
            most = max(departs, key=lambda band: band.power * abs(band.network - band.regression))
            more = "more" if most.network > most.regression else "less"
            return first + (
                f" The network learns {more} than its kernel in the modes {_band(most)}: {most.network:.0%} of their "
                f"power, against {most.regression:.0%}."
            )
        return first if math.isnan(self.network) else first + " The network learns what its kernel does."

    def __str__(self) -> str:
        return f"{table({'kernel': self})}\n{self.verdict}"


def diagnose(
    kernel_or_network: Any, x: Any, y: Any, n: int | None = None, network: Any = None, ridge: float = 0.0
) -> Diagnosis:
    """Judge a kernel on a task, and a network against it.

    Predictions are for training sets of n of the M points given, and errors on the rest of them, so that M need not be
    far above n. A network is judged on the points after the first n, which are those that it was trained on.

    Args:
        kernel_or_network: a Gram matrix [M, M] of any kind of array; a function of x that gives one; a limit from
            ``models.limits.infinite_width`` (its NTK); or a network, whose present NTK it is (with several outputs its
            trace over them, divided by their number) and whose outputs are judged unless ``network`` says otherwise.
        x: [M, *shape], M at least 4, in random order.
        y: [M, c] or [M].
        n: training points, below M; None: half of M.
        network: another network to judge, or its outputs [M, c] (such as those of a centred and scaled one).
        ridge: of the regressions, on the Gram matrix.

    Raises:
        ValueError: what is no finite array of numbers, shapes that do not fit, n or ridge out of range, y the same at
            all points, or a matrix that is no kernel.
    """
    inputs = x.detach() if isinstance(x, Tensor) else float64("x", x)
    labels = _columns("y", y)
    points = len(labels)
    if len(inputs) != points or points < LEAST:
        raise ValueError(f"x and y must have as many rows, at least {LEAST}, not {len(inputs)} and {points}.")
    count = points // 2 if n is None else n
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < points:
        raise ValueError(f"n must be a whole number from 1 to {points - 1} (one less than the points), not {n!r}.")
    if not 0 < float((labels - labels.mean(0)).square().sum()) < math.inf:
        raise ValueError("y must differ between points (and have squares that are numbers): else nothing is aligned.")
    check_std("ridge", ridge)
    if network is None and isinstance(kernel_or_network, nn.Module):
        network = kernel_or_network
    gram = _gram(kernel_or_network, inputs, points)
    labels = labels.to(gram)
    spectrum = sample_spectrum(gram)  # refuses what is no kernel
    outputs = None if network is None else _outputs(network, inputs, labels)
    expected, power = chance(gram, labels), cumulative_power(gram, labels)
    found = alignment(gram, labels)
    by_regression = KernelPredictor(gram[:count, :count], ridge).fit(labels[:count]).predict(gram[count:, :count])
    others = [by_regression] + ([] if outputs is None else [outputs[count:]])
    bands, predicted = _bands(spectrum, labels, count, ridge, others)
    return Diagnosis(
        points=points,
        n=count,
        alignment=found,
        chance=expected.mean,
        z=expected.z(found),
        power_tenth=power_at(power, 0.1),
        power_area=area(power),
        leave_one_out=_leave_one_out(gram, labels, ridge),
        predicted=predicted,
        measured=_relative(by_regression, labels[count:]),
        bands=bands,
        network=math.nan if outputs is None else _relative(outputs[count:], labels[count:]),
    )


def table(diagnoses: dict[str, Diagnosis]) -> str:
    """Diagnoses of one task as one table, a column a kernel."""
    first = next(iter(diagnoses.values()))
    rows: list[tuple[str, list[str]]] = [
        ("alignment", [f"{d.alignment:.3f}" for d in diagnoses.values()]),
        ("alignment / chance", [f"{d.alignment / d.chance:.2f}" for d in diagnoses.values()]),
        ("permutation z", [f"{d.z:.1f}" for d in diagnoses.values()]),
        ("C(.1), power in the leading tenth", [f"{d.power_tenth:.3f}" for d in diagnoses.values()]),
        ("area under C (chance .5)", [f"{d.power_area:.3f}" for d in diagnoses.values()]),
        (f"leave-one-out error, n = {first.points - 1}", [f"{d.leave_one_out:.3f}" for d in diagnoses.values()]),
        (f"predicted test error, n = {first.n}", [f"{d.predicted:.3f}" for d in diagnoses.values()]),
        ("test error of regression", [f"{d.measured:.3f}" for d in diagnoses.values()]),
    ]
    judged = any(not math.isnan(d.network) for d in diagnoses.values())
    if judged:
        rows.append(("test error of the network", [_shown(d.network) for d in diagnoses.values()]))
    rows.append(("modes: power, and the share of it learnt:", [""] * len(diagnoses)))
    rows.append(("  predicted, regression" + (", network" if judged else ""), [""] * len(diagnoses)))
    for i, band in enumerate(first.bands):
        rows.append((f"  {_band(band)}", [_share(d.bands[i], judged) for d in diagnoses.values()]))
    left = max(len(name) for name, _ in rows)
    widths = [max(len(name), *(len(row[1][i]) for row in rows)) for i, name in enumerate(diagnoses)]
    lines = [" " * left + "".join(f"  {name:>{size}}" for name, size in zip(diagnoses, widths, strict=True))]
    for name, cells in rows:
        cut = "".join(f"  {cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        lines.append(f"{name:<{left}}{cut}".rstrip())
    return "\n".join(lines)


def _gram(kernel: Any, x: Tensor, points: int) -> Tensor:
    if isinstance(kernel, nn.Module):
        network = kernel
        found = empirical_ntk(network, _inputs_of(network, x), outputs="trace", dtype=torch.float64)
        assert isinstance(found, Tensor)
        gram = found / network(_inputs_of(network, x[:1])).shape[1]
    elif isinstance(kernel, InfiniteWidth):
        gram = kernel(x.double()).ntk
    else:
        gram = float64("The kernel", kernel(x) if callable(kernel) and not isinstance(kernel, type) else kernel)
    gram = gram.detach()
    if gram.shape != (points, points):
        raise ValueError(f"The kernel must be [{points}, {points}], as many as the rows of x, not {[*gram.shape]}.")
    if not 0 < float(gram.square().sum()) < math.inf:
        raise ValueError("The kernel must not be 0 everywhere, nor so small or large that its squares are no numbers.")
    return gram


def _outputs(network: Any, x: Tensor, y: Tensor) -> Tensor:
    if isinstance(network, nn.Module):
        with torch.no_grad():
            network = network(_inputs_of(network, x))
    outputs = _columns("The network's outputs", network).to(y)
    if outputs.shape != y.shape:
        raise ValueError(f"The network's outputs must be those of y, {[*y.shape]}, not {[*outputs.shape]}.")
    return outputs


def _inputs_of(network: nn.Module, x: Tensor) -> Tensor:
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ValueError("The network must have parameters.")
    return x.to(parameter)


def _columns(name: str, values: Any) -> Tensor:
    tensor = float64(name, values).detach()
    if tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise ValueError(f"{name} must be [M] or [M, c], not {[*tensor.shape]}.")
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _bands(
    spectrum: SampleSpectrum, y: Tensor, n: int, ridge: float, predictions: Sequence[Tensor]
) -> tuple[tuple[Band, ...], float]:
    """The bands, and the predicted test error; ``predictions`` [M - n, c] of regression, and of a network if there is.

    Of mode i, training on n of M points leaves U_i of its coefficient over all M, of which the trained points hold
    nothing (but for a ridge, which is counted apart): U_i M / (M - n) of it over the others.
    """
    points = len(y)
    coefficients = spectrum.coefficients(y).T  # [modes, c]
    power = coefficients.square().sum(1)
    theory = finite_population(spectrum.eigenvalues, power, n, ridge)
    scale = points / (points - n)
    right = [(1 - scale * theory.unreached) * power]
    for prediction in predictions:
        left = torch.cat([torch.zeros_like(y[:n]), y[n:] - prediction])
        right.append(power - scale * (coefficients * spectrum.coefficients(left).T).sum(1))
    edges = [round(edge * points) for edge in EDGES]
    bands = []
    for low, high in itertools.pairwise(edges):
        some = slice(low, high)
        there = float(power[some].sum())
        shares = [float(learnt[some].sum()) / there if there > 0 else math.nan for learnt in right]
        trace = float(spectrum.eigenvalues[some].sum() / spectrum.eigenvalues.sum())
        bands.append(Band(low / points, high / points, trace, there / float(power.sum()), shares[0], shares[1],
                          shares[2] if len(shares) > 2 else math.nan))  # fmt: skip
    return tuple(bands), float(theory.test_mse / power.sum())


def _leave_one_out(gram: Tensor, y: Tensor, ridge: float) -> float:
    """Residuals ``(K + r)^-1 y / diag (K + r)^-1`` (Allen 1974); the jitter is that of the regressions."""
    regular = gram + (ridge + JITTER * gram.diagonal().mean()) * torch.eye(len(gram)).to(gram)
    inverse = torch.linalg.inv(regular)
    return _relative(y - inverse @ y / inverse.diagonal()[:, None], y)


def _relative(outputs: Tensor, y: Tensor) -> float:
    return float((outputs - y).square().sum() / y.square().sum())


def _band(band: Band) -> str:
    return f"{100 * band.low:.0f} to {100 * band.high:.0f} %"


def _share(band: Band, judged: bool) -> str:
    shares = [band.predicted, band.regression] + ([band.network] if judged else [])
    return " ".join([f"{band.power:.3f}", *(f"{_shown(share):>6}" for share in shares)])


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def main(arguments: Sequence[str]) -> int:
    """``python -m bench.diagnose``. Returns 0, or 2 where the settings are wrong: one sentence says which."""
    from bench import store
    from bench.arguments import helped
    from bench.plan import PlanError, build, check_settings, plan
    from bench.studies import cell as study

    helped(arguments, _USE)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        if any(argument.startswith("tasks=") for argument in arguments):
            return _every_task(arguments)
        for argument in arguments:
            if argument.startswith("-"):
                raise PlanError(f"bench.diagnose takes the settings of one cell, and no flag {argument}.")
        check_settings(arguments)
        planned = plan(arguments, multirun=True)  # several are refused below
        if len(planned) > 1:
            raise PlanError("bench.diagnose takes one cell: give each setting one value.")
        if planned[0].request is not None:
            raise PlanError(
                f"{planned[0].config.name} is a study; bench.diagnose takes a cell: name a task and a model."
            )
        cell = build(planned[0].config)
        folder = Path(planned[0].config.runs) / cell.name
        with store.lock(folder):
            trained = study.train(cell, folder / "trained", lambda share: None)
        columns = of_member(trained, 0)
    except (PlanError, ValueError) as error:
        print(f"widebench: {error}", file=sys.stderr)
        return 2
    print(f"{cell.name}: the network is {trained.members[0].name}, which is {trained.status[0]}.")
    print(table(columns))
    for name, diagnosis in columns.items():
        print(f"{name}: {diagnosis.verdict}")
    return 0


def _every_task(arguments: Sequence[str]) -> int:
    """A row a task; the record is kept with those of the other studies.

    Raises:
        ValueError: unknown arguments, or a folder that cannot be written.
    """
    from bench import store
    from bench.arguments import settings
    from bench.studies.study import FOLDER, Request, fingerprint, obtain
    from bench.studies.task_alignment import ShippedTasks, shipped_tasks

    chosen = settings(arguments, {"tasks": "", "runs": "runs"}, "use python -m bench.diagnose tasks=all [runs=DIR]")
    if chosen["tasks"] != "all":
        raise ValueError(f"tasks must be all, not {chosen['tasks']}; for one task, task={chosen['tasks']}.")
    folder = Path(chosen["runs"]) / FOLDER
    store.check_writable("runs", folder / "any")
    record = obtain(Request(shipped_tasks, ShippedTasks()), folder, fingerprint())
    columns = ("over_chance", "z", "power_tenth", "predicted", "measured")
    print(f"{record.card['title']}, mean ± error over {record.scores[0].n_seeds} data draws; errors are test errors.")
    print(f"{'task':<16}" + "".join(f"{column:>22}" for column in columns))
    for task in record.card["tasks"]:
        found = [record.score(f"{task}/{column}") for column in columns]
        cells = [f"{score.value:.4g} ± {score.standard_error:.2g}" for score in found if score is not None]
        print(f"{task:<16}" + "".join(f"{cell:>22}" for cell in cells))
    print("".join(f"{task}: no data\n" for task in record.card["missing"]), end="")
    return 0


def of_member(trained: Trained, member: int) -> dict[str, Diagnosis]:
    """A trained member against its infinite-width, initial and after-kernel, on its training and test points."""
    task = trained.task(member)
    x = torch.cat([task.x_train, task.x_test]).to(trained.f_T)
    y = torch.cat([train_labels(trained, member), clean_labels(trained, member)])
    grams = {}
    with contextlib.suppress(UnavailableError):
        grams["infinite width"] = limit_of(trained)(x).ntk
    for name, snapshot in (("initial", 0), ("after", -1)):
        found: Tensor = trained.kernels([member], snapshot, x, outputs="trace")
        grams[name] = found[0] / y.shape[1]
    return {name: diagnose(gram, x, y, task.n_train, trained.f_T[member]) for name, gram in grams.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
