"""Fits against data made with a known law, and their errors against the scatter of many repetitions."""

import numpy as np
import pytest

from bench.studies.fits import line, power_law


def test_a_line_is_found_with_the_scatter_of_its_seeds():
    generator = np.random.default_rng(0)
    t = np.linspace(0, 1, 5)
    seeds = 2 + generator.normal(size=(400, 1)) + (3 + 0.5 * generator.normal(size=(400, 1))) * t
    fit = line(t, seeds)
    # The seeds' slopes scatter by .5, their intercepts by 1; each mean is right to four errors of it.
    assert fit.slope_error == pytest.approx(0.5 / 20, rel=0.2)
    assert fit.intercept_error == pytest.approx(1 / 20, rel=0.2)
    assert abs(fit.slope.mean() - 3) < 4 * 0.5 / 20
    assert abs(fit.intercept.mean() - 2) < 4 / 20


def test_the_error_of_one_seed_comes_from_its_residuals():
    generator = np.random.default_rng(1)
    t = np.linspace(0, 1, 6)
    errors, slopes = [], []
    for _ in range(2000):
        fit = line(t, 1 + t + 0.1 * generator.normal(size=6))
        slopes.append(fit.slope[0])
        errors.append(fit.slope_error**2)
    assert np.mean(errors) == pytest.approx(np.var(slopes), rel=0.15)  # 2000 draws: 3 % each


def test_a_curve_that_bends_is_not_a_sure_line():
    t = np.linspace(0, 1, 6)
    assert line(t, np.stack([np.exp(3 * t)] * 50)).slope_error > 1  # the seeds agree to the bit


def test_a_power_law_is_found_through_seeds_that_are_negative_at_times():
    generator = np.random.default_rng(2)
    x = np.array([64.0, 128.0, 256.0, 512.0])
    slopes, errors = [], []
    for _ in range(300):
        fit = power_law(x, 5 / x * (1 + generator.normal(size=(40, 4))))
        assert fit is not None
        slopes.append(fit.slope.mean())
        errors.append(fit.slope_error)
    # Relative scatter 1 / sqrt(40) of each mean, over t of variance 0.6 at four widths: an error of .10.
    assert abs(np.mean(slopes) + 1) < 4 * np.std(slopes) / 300**0.5 + 0.005
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.35)  # the larger of two estimates: somewhat above
    assert power_law(x, -np.ones((3, 4))) is None
    assert power_law(x, np.full((3, 4), np.nan)) is None


def test_one_seed_gives_the_plain_fit():
    x = np.array([1.0, 2.0, 4.0])
    fit = power_law(x, 3 * x[None] ** -0.7)
    assert fit is not None
    assert fit.slope[0] == pytest.approx(-0.7)
    assert np.exp(fit.intercept[0]) == pytest.approx(3)
    assert fit.negated().slope_score("a").value == pytest.approx(0.7)
