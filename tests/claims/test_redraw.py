"""Redraws: sets that share no seed, lines that are read again, and counts against independent ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.claims import Claim, Control, Window, predicted
from bench.claims.__main__ import main
from bench.claims.redraw import APART, FIRST, binomial_bound, redraw, summary
from bench.record import Record
from bench.studies.study import Request, result


@dataclass(frozen=True)
class Drawn:
    shift: float
    seeds: tuple[int, ...]


def drawn(settings: Drawn) -> Record:
    return result(arrays={"x": settings.shift + np.array([np.random.default_rng(s).normal() for s in settings.seeds])})


def claim(name: str, shift: float, window: Window, **more: object) -> Claim:
    fields: dict = {
        "name": name, "statement": "Any.", "source": "here", "kind": "theorem", "power": "any", "alpha": 0.01,
        "requests": lambda size, seeds: [Request(drawn, Drawn(shift, seeds))],
        "statistics": lambda records: {"x": records[0].arrays["x"]}, "windows": {"x": window},
        "controls": [Control("a hundred more", lambda records: {"x": records[0].arrays["x"] + 100})],
    }  # fmt: skip
    return Claim(**(fields | more))


def logs(records: tuple[Record, ...]) -> dict[str, np.ndarray]:
    """Of what is negative there is no logarithm: that seed gives no number."""
    with np.errstate(invalid="ignore"):
        return {"x": np.log(records[0].arrays["x"])}


CLAIMS = [
    claim("safe", 5.0, Window(low=0.0, gap=9.0), controls=[Control("less", lambda r: {"x": r[0].arrays["x"] - 99})]),
    claim("near", 1.0, Window(low=0.0, high=50.0, every=True)),
    claim("true-prediction", 0.0, predicted(0.0, gap=9.0)),
    claim("false", 9.0, Window(high=0.0, gap=9.0), recorded="refuted",
          controls=[Control("less", lambda r: {"x": r[0].arrays["x"] - 99})]),
]  # fmt: skip


def values(shift: float, number: int) -> np.ndarray:
    seeds = range(FIRST + APART * number, FIRST + APART * number + 8)
    return np.array([shift + np.random.default_rng(seed).normal() for seed in seeds])


def test_counts_and_distances(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "redraws.jsonl"
    lines = redraw(CLAIMS, tmp_path / "studies", file, 5, jobs=1, tell=said.append)
    found = summary(CLAIMS, lines, 5)
    assert found["trials"] == 20
    assert found["complete"]
    rows = {row["name"]: row for row in found["claims"]}
    all_values = {shift: np.concatenate([values(shift, k) for k in range(5)]) for shift in (5.0, 1.0, 9.0, 0.0)}
    for name, shift, sign in (("safe", 5.0, 1), ("near", 1.0, 1), ("false", 9.0, 1)):
        x = all_values[shift]
        assert rows[name]["distance"] == pytest.approx(sign * x.mean() / x.std(ddof=1))
    x = all_values[0.0]
    assert rows["true-prediction"]["distance"] is None
    assert rows["true-prediction"]["statistics"]["x"]["z"] == pytest.approx(x.mean() / (x.std(ddof=1) / 40**0.5))
    flips = [k for k in range(5) if (values(1.0, k) < 0).any()]
    assert [flip["set"] for flip in rows["near"]["flips"]] == flips
    assert len(flips) >= 1, "the test must see a flip"
    assert found["flips"] == sum(len(row["flips"]) for row in rows.values())
    assert found["closer_than_4_deviations"] == ["near"]
    assert not found["predictions_more_than_4_errors_off"]
    assert any("NOT as on record" in line for line in said)
    assert not found["controls_missed"]
    # What is done is read; a half line and lines of other code or seeds are not counted.
    file.write_text(file.read_text() + '{"claim": "safe", "se')
    assert redraw(CLAIMS, tmp_path / "none", file, 5, jobs=1) == lines
    assert summary(CLAIMS, lines, 5) == found
    assert not (tmp_path / "none").exists()
    assert len(redraw(CLAIMS[:1], tmp_path / "studies", file, 2, seeds=4, jobs=1)) == 2
    assert redraw(CLAIMS[:1], tmp_path / "none", file, 2, seeds=4, jobs=1)  # the line after the half one is read
    assert not (tmp_path / "none").exists()


def test_a_seed_without_a_number_is_a_flip_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "redraws.jsonl"
    arguments = ([claim("log", 1.5, Window(low=-9.0, gap=9.0), statistics=logs)], tmp_path / "studies", file, 5)
    lines = redraw(*arguments, jobs=1)
    (row,) = summary(arguments[0], lines, 5)["claims"]
    with np.errstate(invalid="ignore"):
        sets = [np.log(values(1.5, k)) for k in range(5)]
    lost = [k for k in range(5) if not np.isfinite(sets[k]).all()]
    assert 0 < len(lost) < 5, "the test must see both"
    assert [flip["set"] for flip in row["flips"]] == lost
    assert all(flip["reason"] == "A seed gave no finite number: x." for flip in row["flips"])
    kept = np.concatenate(sets)[np.isfinite(np.concatenate(sets))]
    assert row["statistics"]["x"]["n"] == len(kept)
    assert row["statistics"]["x"]["mean"] == pytest.approx(kept.mean())
    assert redraw(*arguments, jobs=1) == lines
    assert len(file.read_text().splitlines()) == 5  # it has been judged: it is not tried again


def test_a_claim_that_lacks_something_is_left_out(tmp_path: Path) -> None:
    both = [replace(CLAIMS[0], name="lacking", lacks=lambda: "No telescope."), CLAIMS[0]]
    said: list[str] = []
    lines = redraw(both, tmp_path / "studies", tmp_path / "redraws.jsonl", 2, jobs=1, tell=said.append)
    assert [row["name"] for row in summary(both, lines, 2)["claims"]] == ["safe"]
    assert "skipped lacking: No telescope." in said


def test_a_wrong_prediction_shows_though_no_set_refutes_it(tmp_path: Path) -> None:
    wrong = [claim("wrong-prediction", 0.7, predicted(0.0, gap=9.0))]
    lines = redraw(wrong, tmp_path / "studies", tmp_path / "redraws.jsonl", 10, jobs=1)
    x = np.concatenate([values(0.7, k) for k in range(10)])
    assert x.mean() / (x.std(ddof=1) / 80**0.5) > 4, "the test must see it"
    assert summary(wrong, lines, 10)["predictions_more_than_4_errors_off"] == ["wrong-prediction"]


def test_the_bound_is_the_binomial_one() -> None:
    for n, p in ((20, 0.01), (1600, 1e-4), (100, 0.3)):
        assert binomial_bound([p] * n) == stats.binom.ppf(0.95, n, p)
    assert binomial_bound([]) == 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bench.claims.__main__.built_in", lambda: {c.name: c for c in CLAIMS})
    arguments = ["safe", "--redraw", "3", "--jobs", "1", "--runs", str(tmp_path), "--json", str(tmp_path / "t.json")]
    assert main(arguments) == 0
    assert "3 trials of 1 claims: 0 flips" in capsys.readouterr().out
    table = json.loads((tmp_path / "t.json").read_text())
    assert table["claims"][0]["sets"] == 3
    monkeypatch.setattr("bench.claims.__main__.built_in", lambda: {"near": CLAIMS[1]})
    assert main(["--redraw", "5", *arguments[3:]]) == 1
