"""Verdicts against Student's t by hand, and their size by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from bench.claims.claim import Claim, Control, Window, predicted
from bench.claims.judge import check, judge

T_7 = 7.885  # one-sided 5e-5, 7 degrees of freedom (tables: 7.885)


def claim(**changes: object) -> Claim:
    fields: dict = {
        "name": "c", "statement": "s", "source": "here", "kind": "theorem", "requests": lambda size, seeds: [],
        "statistics": lambda records: {}, "windows": {"a": Window(0, 1, gap=1)},
        "controls": [Control("wrong", lambda records: {"a": [5.0, 5.1]})], "power": "any",
    }  # fmt: skip
    return Claim(**(fields | changes))


def test_margin_is_students_t_times_the_standard_error() -> None:
    values = np.arange(8.0)
    found = check("a", values, Window(-100, 100, gap=100), 5e-5)
    assert found.margin == pytest.approx(T_7 * values.std(ddof=1) / 8**0.5, rel=1e-3)
    assert found.distance == pytest.approx((100 - 3.5) / values.std(ddof=1))


@pytest.mark.parametrize(
    ("values", "window", "verdict"),
    [
        ([0.5, 0.51, 0.49, 0.5], Window(0, 1, gap=0.5), "holds"),
        ([0.5, 0.51, 0.49, 0.5], Window(0, 1, gap=0.01), "inconclusive"),  # the scatter hides a gap of .01
        ([1.2, 1.21, 1.19, 1.2], Window(0, 1, gap=0.5), "refuted"),
        ([1.2, 0.7, 1.9, 1.2], Window(0, 1, gap=9), "inconclusive"),  # outside, but not beyond the margin
        ([0.5, 0.5, 1.1], Window(0, 1, every=True), "refuted"),
        ([0.5, 0.5, 1.0], Window(0, 1, every=True), "holds"),
        ([0.5, float("nan")], Window(0, 1, every=True), "inconclusive"),
        ([0.5], Window(0, 1, gap=1), "inconclusive"),  # one seed has no error
        ([0.5], Window(0, 1, every=True), "holds"),
        ([0.9, 1.1, 1.0, 1.05], predicted(1.0, gap=2), "holds"),
        ([0.9, 1.1, 1.0, 1.05], predicted(1.0, gap=0.1), "inconclusive"),
        ([1.51, 1.49, 1.5, 1.5], predicted(1.0, gap=2), "refuted"),
        ([1.51, 1.49, 1.5, 1.5], predicted(1.0, gap=20, error=0.5), "holds"),  # the prediction itself is uncertain
    ],
)
def test_verdict(values: list[float], window: Window, verdict: str) -> None:
    assert check("a", values, window, 5e-5).verdict == verdict


def test_the_size_is_what_it_says() -> None:
    """A true prediction is refuted with probability 2 alpha (two sides): 4,000 draws, within 4 binomial deviations."""
    draws = np.random.default_rng(0).normal(size=(4000, 8))
    refuted = sum(check("a", row, predicted(0.0, gap=99), 0.05).verdict == "refuted" for row in draws)
    assert abs(refuted - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5


def test_one_refuted_window_refutes_and_alpha_is_shared() -> None:
    both = claim(windows={"a": Window(0, 1, gap=1), "b": Window(0, 1, gap=1)})
    verdict, checks = judge(both, {"a": [0.5, 0.51, 0.5], "b": [2.0, 2.01, 2.0]})
    assert verdict == "refuted"
    assert [c.verdict for c in checks] == ["holds", "refuted"]
    alone = judge(claim(), {"a": [0.5, 0.51, 0.5]})[1][0]
    assert checks[0].margin > alone.margin


def test_a_claim_without_a_control_or_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a control"):
        claim(controls=[])
    with pytest.raises(ValueError, match="needs a window"):
        claim(windows={})
    with pytest.raises(ValueError, match="calibration"):
        claim(kind="calibrated")
    with pytest.raises(ValueError, match="admits everything"):
        Window(every=True)
    with pytest.raises(ValueError, match="gap"):
        Window(0, 1)
    with pytest.raises(KeyError, match="no window"):
        judge(claim(), {"b": [1.0]})
