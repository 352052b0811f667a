"""Numbers as text: always the mean, its standard error and the number of seeds."""

from __future__ import annotations

import math

from bench.record import Score

ABSENT = "–"


def decimals(value: float, error: float = math.nan) -> int:
    """Digits after the point: two significant ones of the error, else three of the value; four at most."""
    if math.isfinite(error) and error > 0:
        return min(4, max(0, 1 - math.floor(math.log10(error))))
    if not math.isfinite(value) or value == 0:
        return 2
    return min(4, max(0, 2 - math.floor(math.log10(abs(value)))))


def number(value: float | None, error: float = math.nan) -> str:
    """One number; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{decimals(value, error)}f}"


def _exact(score: Score) -> bool:
    """Whether its seeds agree to rounding: it does not see what they change."""
    return score.standard_error <= 1e-12 * max(abs(score.value), 1e-3)


def measured(score: Score | None) -> str:
    """``0.842 ± 0.012 (6)``; "–" where it was not measured."""
    if score is None or not math.isfinite(score.value):
        return ABSENT
    if _exact(score):
        return f"{number(score.value)} ({score.n_seeds})"
    return f"{number(score.value, score.standard_error)} ± {error_of(score)} ({score.n_seeds})"


def compact(score: Score | None) -> str:
    """``.842±.012``, for wide tables, in which the number of seeds has a column of its own."""
    if score is None or not math.isfinite(score.value):
        return ABSENT
    if _exact(score):
        return bare(number(score.value))
    value = bare(number(score.value, score.standard_error))
    return f"{value}±{bare(error_of(score))}" if math.isfinite(score.standard_error) else value


def error_of(score: Score) -> str:
    """Its standard error, with as many digits as the value is written with."""
    error = score.standard_error
    if not math.isfinite(error):
        return ABSENT
    if 0 < error < 10 ** -decimals(score.value, error) / 2 or 0 < abs(score.value) < 1e-3:
        return f"{error:.0e}".replace("e-0", "e-")
    return f"{error:.{decimals(score.value, error)}f}"


def bare(text: str) -> str:
    """Without the zero before the point."""
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
