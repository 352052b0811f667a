"""Power laws in the width: slope and error against synthetic data of known scatter."""

import math

import numpy as np
import pytest
from scipy.stats import linregress
from synthetic_records import record, score, study

from bench.record import Score
from bench.report.widths import fit, power_laws

WIDTHS = (64, 128, 256, 512, 1024)


def law(widths, values, errors):
    scores = [Score("kernel/motion", value, error, 6) for value, error in zip(values, errors, strict=True)]
    return fit(widths, scores)


def test_a_power_law_is_recovered_with_the_error_of_its_seeds():
    values = np.array([3.0 * w**-0.5 for w in WIDTHS])
    found = law(WIDTHS, values, 0.02 * values)
    assert found.slope == pytest.approx(-0.5, abs=1e-12)
    assert math.exp(found.intercept) == pytest.approx(3.0, rel=1e-12)
    # Equal relative errors s: the textbook error of a slope is s / sqrt(sum of squares of the centred abscissae).
    x = np.log(WIDTHS)
    assert found.slope_error == pytest.approx(0.02 / math.sqrt(((x - x.mean()) ** 2).sum()), rel=1e-12)


def test_scatter_around_the_line_counts_where_the_seeds_say_less():
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(0, 0.3, 5)) * np.array(WIDTHS, dtype=float) ** -1
    reference = linregress(np.log(WIDTHS), np.log(values))
    for errors in (0.0 * values, math.nan * values):  # nan: one seed
        found = law(WIDTHS, values, errors)
        assert found.slope == pytest.approx(reference.slope, rel=1e-12)
        assert found.slope_error == pytest.approx(reference.stderr, rel=1e-10)


def test_the_slope_lies_within_two_errors_as_often_as_it_should():
    """Scatter s known to the seeds: the error is never below the true one, so 2 errors cover at least 95.4 %.

    1000 draws know that share to 0.7 %: four of these are 2.7 %. An error half as large would cover 68 %, and one twice
    as large at least 99.99 %: the error is the larger of two, and covers 97 % or so.
    """
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        values = np.exp(rng.normal(0, 0.1, 5)) * 2.0 * np.array(WIDTHS, dtype=float) ** -0.5
        found = law(WIDTHS, values, 0.1 * values)
        inside += abs(found.slope + 0.5) < 2 * found.slope_error
    assert 0.927 < inside / 1000 < 0.999


def test_two_widths_are_no_law():
    assert law((64, 256), (1.0, 0.5), (0.1, 0.1)) is None
    assert law((64, 64, 256), (1.0, 1.1, 0.5), (0.1, 0.1, 0.1)) is None


def test_values_without_a_logarithm_are_left_out():
    values = [1.0, 0.5, math.nan, 0.25, 0.0]
    found = law((1, 2, 3, 4, 5), values, [0.01] * 5)
    assert found.slope == pytest.approx(-1, abs=1e-12)
    assert list(np.round(found.widths)) == [1, 2, 4]


def test_each_richness_has_its_own_law_from_finished_cells():
    cells = [
        record([score("kernel/motion", scale * w**power)], width=w, richness=richness)
        for richness, scale, power in (("ntk", 1.0, -1.0), (1.0, 5.0, 0.0))
        for w in WIDTHS
    ]
    cells.append(record([score("kernel/motion", 1e6)], width=4096, richness="ntk", status="unconverged"))
    slopes = {found.richness: found.slope for found in power_laws(study(cells), "kernel/motion")}
    assert slopes == {"ntk": pytest.approx(-1, abs=1e-12), 1.0: pytest.approx(0, abs=1e-12)}
