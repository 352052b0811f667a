"""Eigenlearning against references in 50 and 64-bit-mantissa arithmetic, its limits, its batches and its refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
from theory_references import extended, precise

from bench.theory.eigenlearning import eigenlearning

FIELDS = ("kappa", "overfitting_coefficient", "test_mse", "train_mse")


def close(found, expected, tolerance):
    for field in FIELDS:
        value, reference = float(getattr(found, field)), getattr(expected, field)
        assert value == pytest.approx(reference, rel=tolerance, abs=0), field


LEVELS = {
    "cube": ([0.5, 0.1, 0.01, 1e-3, 2e-4], [1, 8, 28, 56, 163]),
    "gaps": ([1.0, 1e-12, 1e-24, 1e-40], [1, 10, 100, 1000]),
    "zeros": ([1.0, 0.3, 0.0, 0.0], [2, 5, 3, 100]),
    "single": ([3.0], [1]),
    "huge": ([1.0, 1e-3, 1e-20], [1, 1e6, 1e15]),  # counts up to 2^53 add up exactly
}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("name", LEVELS)
def test_levels_agree_with_fifty_digits_even_where_n_fills_a_level(name, scale):
    lam, counts = LEVELS[name]
    lam = [scale * value for value in lam]
    v2 = [1 / (i + 1) for i in range(len(lam))]
    support = sum(c for value, c in zip(lam, counts, strict=True) if value > 0)
    full = [float(sum(counts[: i + 1])) for i in range(len(counts)) if lam[i] > 0]
    sizes = {0.3, 1.0, 7.25, *full, *(f * (1 - 1e-9) for f in full), 3 * support}
    for n, ridge, noise in itertools.product(sizes, (0.0, 1e-20 * scale, 1e-3 * scale, 50 * scale), (0.0, 0.2)):
        if ridge == 0 and n >= support:
            continue  # defined below
        found = eigenlearning(lam, v2, n, ridge, noise, counts)
        # kappa and all sums have some ten roundings each, however close n is to a full level.
        close(found, precise(lam, v2, counts, n, ridge, noise), 1e-13)


SPECTRA = {
    "power 1.1": np.arange(1, 1001.0) ** -1.1,
    "power 2": np.arange(1, 1001.0) ** -2,
    "power 5": np.arange(1, 1001.0) ** -5,
    "exponential": np.exp(-np.arange(1000) / 20),
    "isotropic": np.full(1000, 0.7),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_a_thousand_modes_agree_with_extended_precision(name):
    lam = SPECTRA[name]
    v2 = np.arange(1, 1001.0) ** -1.5
    grid = list(itertools.product((0.5, 10, 99.5, 900), (0.0, 1e-9, 1e-2, 10.0), (0.0, 0.5)))
    n, ridge, noise = (torch.tensor(column, dtype=torch.float64) for column in zip(*grid, strict=True))
    found = eigenlearning(lam, v2, n, ridge, noise)
    for row, case in enumerate(grid):
        expected = extended(lam, v2, *case)
        for field in FIELDS:
            # Pairwise float64 sums of 1000 terms.
            assert float(getattr(found, field)[row]) == pytest.approx(getattr(expected, field), rel=1e-12), field


def test_learned_modes_and_ridge_share_out_exactly_n():
    for lam, ridge in itertools.product(SPECTRA.values(), (0.0, 1e-6, 1.0)):
        found = eigenlearning(lam, lam, torch.linspace(0.1, 999, 50), ridge)
        budget = found.total_learnability + found.ridge_budget
        assert ((budget - found.n).abs() <= 1e-12 * found.n).all()
        assert (found.learnabilities + found.unlearned - 1).abs().max() < 1e-15


def test_without_ridge_from_the_rank_on_everything_that_can_be_is_learned():
    v2, sigma2 = [1.0, 1.0, 0.25], 0.1  # the last mode is outside the kernel
    found = eigenlearning([1.0, 0.5, 0.0], v2, [2.0, 2.5, 8.0], noise=sigma2)
    assert found.kappa.tolist() == [0, 0, 0]
    assert found.learnabilities.tolist() == [[1, 1, 0]] * 3
    # Least squares with 2 parameters on n points, of residual variance .25 + .1: n / (n - 2), infinite at n = 2.
    assert found.test_mse.tolist() == pytest.approx([math.inf, 5 * 0.35, 8 / 6 * 0.35])
    assert found.train_mse.tolist() == pytest.approx([0, (1 - 2 / 2.5) * 0.35, (1 - 2 / 8) * 0.35])
    assert eigenlearning([1.0, 0.5], [1, 1], [2, 3]).test_mse.tolist() == [0, 0]
    # It is the limit of a small ridge.
    near = eigenlearning([1.0, 0.5, 0.0], v2, [2.5, 8.0], 1e-12, sigma2)
    for field in ("test_mse", "train_mse", "overfitting_coefficient", "ridge_budget"):
        torch.testing.assert_close(getattr(near, field), getattr(found, field)[1:], rtol=1e-10, atol=1e-10)


def test_no_point_teaches_nothing():
    lam, v2 = [2.0, 1.0, 0.0], [1.0, 2.0, 3.0]
    for ridge in (0.0, 0.5):
        none, few = (eigenlearning(lam, v2, n, ridge, 0.3) for n in (0, 1e-12))
        assert none.kappa == math.inf
        assert none.learnabilities.tolist() == [0, 0, 0]
        assert none.test_mse == pytest.approx(6.3)
        for field in ("test_mse", "train_mse", "overfitting_coefficient", "bias", "learnability_rates"):
            torch.testing.assert_close(getattr(none, field), getattr(few, field), rtol=1e-9, atol=1e-9)


def test_a_kernel_that_is_zero_learns_nothing():
    found = eigenlearning([0.0, 0.0], [1.0, 2.0], [0, 1, 5], ridge=[[0.0], [1.0]], noise=0.5)
    assert (found.learnabilities == 0).all()
    assert (found.test_mse == 3.5).all()
    assert (found.train_mse == 3.5).all()


def test_closed_forms():
    # Isotropic: L = n / M and E_0 = 1 / (1 - n / M).
    iso = eigenlearning([4.0], [1.0], 30, multiplicities=[120])
    assert iso.learnabilities[0] == pytest.approx(0.25, rel=1e-14)
    assert iso.overfitting_coefficient == pytest.approx(4 / 3, rel=1e-14)
    # Power law i^-a: kappa -> ((pi / a) / sin(pi / a) / n)^a and E_0 -> a, both up to the half mode of the
    # Euler-Maclaurin sum, 1 / (2 n) in n and so a / (2 n) in kappa; 2e5 modes cut off n / 2e5 more.
    a, n = 2.0, 1000
    law = eigenlearning(torch.arange(1, 200_001, dtype=torch.float64) ** -a, torch.ones(200_000), n)
    slack = a * (1 / (2 * n) + n / 2e5 / 2)
    assert float(law.kappa) == pytest.approx((math.pi / a / math.sin(math.pi / a) / n) ** a, rel=2 * slack)
    assert float(law.overfitting_coefficient) == pytest.approx(a, rel=2 * slack)
    # Many points at a fixed ridge a point: kappa = delta / n.
    many = eigenlearning([1.0, 0.1], [1, 1], 1e9, 1e7)
    assert float(many.kappa) == pytest.approx(1e-2, rel=1e-8)


def test_identities_between_the_fields():
    lam = torch.arange(1, 41, dtype=torch.float64) ** -1.5
    v2 = lam.sqrt()
    found = eigenlearning(lam, v2, torch.tensor([3.0, 20.0, 60.0]), 0.05, 0.2)
    same = torch.testing.assert_close
    same(found.bias + found.variance, found.test_mse)
    same(found.clean_test_mse + 0.2, found.test_mse)
    same(found.bias, found.test_mse / found.overfitting_coefficient)
    same(found.train_mse, (0.05 / (found.n * found.kappa)) ** 2 * found.test_mse)
    same(found.learnability, (found.learnabilities * v2).sum(-1) / v2.sum())
    # The error is that of the mean predictor, the spread of its coefficients, and the noise.
    spread = found.coefficient_variance.sum(-1)
    same(((1 - found.learnabilities) ** 2 * v2).sum(-1) + spread + 0.2, found.test_mse)
    # Each mode alone.
    for mode in (0, 7):
        alone = eigenlearning(lam, torch.eye(40)[mode], found.n, 0.05, 0.2)
        same(found.mode_test_mse[:, mode], alone.test_mse)
    # dL / dn by central differences: error h^2 of a smooth curve.
    h = 1e-4
    up, down = (eigenlearning(lam, v2, found.n + step, 0.05).learnabilities for step in (h, -h))
    same(found.learnability_rates, (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


def test_a_level_is_its_modes():
    lam, counts = [1.0, 0.2, 0.03], [2, 3, 4]
    single = torch.repeat_interleave(torch.tensor(lam, dtype=torch.float64), torch.tensor(counts))
    v2 = torch.arange(9.0).double()
    level = torch.stack([v2[:2].sum(), v2[2:5].sum(), v2[5:].sum()])
    one, all_ = eigenlearning(lam, level, 4, 0.1, 0.2, counts), eigenlearning(single, v2, 4, 0.1, 0.2)
    for field in (*FIELDS, "total_learnability", "bias", "variance", "learnability"):
        torch.testing.assert_close(getattr(one, field), getattr(all_, field), rtol=1e-14, atol=0)
    torch.testing.assert_close(one.coefficient_variance, all_.coefficient_variance[[0, 2, 5]])
    g = torch.tensor([0.0, 1.0, 4.0])
    expanded = torch.repeat_interleave(g, torch.tensor(counts))
    torch.testing.assert_close(one.mean_squared_gradient(g), all_.mean_squared_gradient(expanded))


def test_missing_trace_and_power_stand_for_the_modes_left_out():
    # 50,000 tiny modes of trace 1: next to kappa >= .1 each is a ridge up to lambda / kappa = 2e-4.
    lam = torch.cat([torch.tensor([2.0, 1.0, 0.5]), torch.full((50_000,), 2e-5)]).double()
    v2 = torch.cat([torch.tensor([1.0, 1.0, 1.0]), torch.full((50_000,), 1e-5)]).double()
    n = torch.tensor([2.0, 5.0])
    for ridge in (0.0, 0.4):
        whole = eigenlearning(lam, v2, n, ridge, 0.1)
        assert (whole.kappa > 0.1).all()
        cut = eigenlearning(lam[:3], v2[:3], n, ridge, 0.1, tail=1.0, missing=0.5)
        for field in ("test_mse", "clean_test_mse", "learnability", "train_mse"):
            torch.testing.assert_close(getattr(cut, field), getattr(whole, field), rtol=1e-3, atol=1e-3)


def test_batches_are_the_single_cases():
    lam = torch.rand(4, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v2 = torch.rand(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n, ridge = torch.tensor([1.0, 5.0, 9.0])[:, None, None, None], torch.tensor([0.1, 1.0])[:, None, None, None, None]
    counts = [1, 2, 1, 1, 3, 1]
    found = eigenlearning(lam, v2, n, ridge, 0.3, counts)
    assert found.kappa.shape == (2, 3, 1, 4, 1)
    assert found.test_mse.shape == (2, 3, 1, 4, 3)
    for r, i, s, t in itertools.product(range(2), range(3), range(4), range(3)):
        one = eigenlearning(lam[s, 0], v2[t], n[i].item(), ridge[r].item(), 0.3, counts)
        for field in ("test_mse", "train_mse", "learnability", "variance"):
            torch.testing.assert_close(getattr(found, field)[r, i, 0, s, t], getattr(one, field), rtol=1e-13, atol=0)
    per_row = eigenlearning(lam[:, 0], v2[0], 3.0, multiplicities=torch.arange(1, 25).reshape(4, 6))
    one = eigenlearning(lam[2, 0], v2[0], 3.0, multiplicities=torch.arange(13, 19))
    torch.testing.assert_close(per_row.test_mse[2], one.test_mse)


def test_long_batches_and_long_spectra_are_solved_in_blocks():
    lam = torch.arange(1, 30_001, dtype=torch.float64) ** -1.3
    n = torch.linspace(1, 20_000, 7)
    found = eigenlearning(lam, lam, n)
    torch.testing.assert_close(found.kappa[5], eigenlearning(lam, lam, n[5]).kappa, rtol=1e-14, atol=0)
    many = torch.linspace(0.5, 2.5, 60_000, dtype=torch.float64)
    short = eigenlearning([1.0, 0.5, 0.1], [1, 1, 1], many)
    assert (short.total_learnability - many).abs().max() < 1e-14 * 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"eigenvalues": []}, "eigenvalues must be .* with at least one mode"),
        ({"eigenvalues": 3.0}, "eigenvalues must be .* with at least one mode"),
        ({"eigenvalues": "spectrum"}, "eigenvalues must be a number or an array"),
        ({"eigenvalues": [1.0, [2.0, 3.0]]}, "eigenvalues must be a number or an array"),
        ({"eigenvalues": None}, "eigenvalues must be"),
        ({"eigenvalues": [1.0 + 1j, 0]}, "eigenvalues must be real"),
        ({"eigenvalues": [1.0, math.nan]}, "eigenvalues must be finite"),
        ({"eigenvalues": [1.0, math.inf]}, "eigenvalues must be finite"),
        ({"eigenvalues": [1.0, -0.1]}, "eigenvalues must be at least 0, not -0.1"),
        ({"eigenvalues": [-1.0, -1.0]}, "eigenvalues must be at least 0, not -1"),
        ({"eigenvalues": torch.tensor([1.0 + 1j, 0])}, "eigenvalues must be real"),
        ({"target_power": [1.0]}, "target_power must be .* modes = 2"),
        ({"target_power": [1.0, -1.0]}, "target_power must be at least 0, not -1"),
        ({"target_power": [1.0, math.nan]}, "target_power must be finite"),
        ({"n": -1}, "n must be at least 0, not -1"),
        ({"n": math.nan}, "n must be finite"),
        ({"ridge": -0.5}, "ridge must be at least 0"),
        ({"noise": -0.5}, "noise must be at least 0"),
        ({"multiplicities": [1, 0]}, "multiplicities must be above 0"),
        ({"multiplicities": [1, 1, 1]}, "multiplicities must have the shape"),
        ({"n": [1, 2, 3], "ridge": [1, 2]}, "batch shapes must broadcast"),
        ({"n": [1, 2, 3], "target_power": torch.ones(2, 2)}, "batch shapes must broadcast"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, sentence):
    good = {"eigenvalues": [1.0, 0.5], "target_power": [1.0, 1.0], "n": 1}
    with pytest.raises(ValueError, match=sentence):
        eigenlearning(**{**good, **arguments})


def test_any_kind_of_array_is_taken():
    lam = np.array([1.0, 0.5])
    lam.flags.writeable = False
    expected = eigenlearning([1.0, 0.5], [1.0, 1.0], 1.5, 0.1).test_mse
    for values in (lam, lam.astype(np.float32), lam.astype(np.longdouble), (1, 0.5), torch.tensor([1, 0.5])):
        found = eigenlearning(values, np.ones(2, dtype=np.int64), np.float32(1.5), torch.tensor(0.1).double())
        assert found.test_mse.dtype == torch.float64
        assert float(found.test_mse) == pytest.approx(float(expected), rel=1e-7)  # 0.1 in float32


def test_rounding_noise_of_an_eigendecomposition_is_clipped():
    lam = torch.tensor([1.0, 0.5, -1e-15])
    assert eigenlearning(lam, [1, 1, 1], 1).learnabilities[2] == 0


@pytest.mark.parametrize("ridge", [0.0, 1e-20, 1e-3, 10.0])
@pytest.mark.parametrize("kind", ["power law", "exponential", "random", "isotropic", "with zeros", "sixty decades"])
def test_thousands_of_modes_solve_the_equation(kind, ridge):
    """The first guess is then of groups of modes. Sums of 3,000 terms, rounded to 1e-16 of n each at worst."""
    i = torch.arange(1, 3001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    eigenvalues = {
        "power law": i**-1.5, "exponential": (-i / 5).exp(), "isotropic": torch.ones_like(i),
        "random": torch.rand(3000, generator=generator, dtype=torch.float64) ** 8,
        "with zeros": torch.where(i % 4 == 0, i**-1.1, 0.0),
        "sixty decades": 10 ** (-60 * torch.rand(3000, generator=generator, dtype=torch.float64)),
    }[kind]  # fmt: skip
    multiplicities = torch.randint(1, 5, (3000,), generator=generator).double()
    rank = float(multiplicities[eigenvalues > 0].sum())
    n = torch.tensor([0.1, 1.0, 7.3, 256.0, rank / 2, rank - 0.5], dtype=torch.float64)
    kappa = eigenlearning(eigenvalues, torch.ones_like(i), n, ridge, multiplicities=multiplicities).kappa
    learned = multiplicities * eigenvalues / (eigenvalues + kappa[:, None])
    torch.testing.assert_close(learned.sum(1) + ridge / kappa, n, rtol=3e-13, atol=0)
