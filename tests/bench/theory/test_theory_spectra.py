"""Spectra and coefficients on hypercube, sphere, circle and samples against eigendecompositions and closed forms."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from theory_references import corners, network_kernel, parities

from bench.theory.circle import circle_points, circle_spectrum, circle_target
from bench.theory.eigenlearning import eigenlearning
from bench.theory.hypercube import (
    hypercube_spectrum,
    hypercube_target,
    hypercube_target_from_sample,
    level_sizes,
    walsh,
)
from bench.theory.sample import sample_spectrum
from bench.theory.spectrum import Target
from bench.theory.sphere import harmonic_counts, sphere_spectrum, sphere_target_from_sample, zonal_target


def exponential(scale: float):
    """exp(x . x' / scale)."""
    return lambda x1, x2=None: ((x1 @ (x1 if x2 is None else x2).T) / scale).exp()


def test_hypercube_levels_are_the_eigenvalues_of_the_whole_cube():
    d = 8
    kernel = network_kernel(d)
    spectrum = hypercube_spectrum(kernel, d)
    assert spectrum.multiplicities is not None
    assert spectrum.multiplicities.tolist() == [math.comb(d, k) for k in range(d + 1)]
    expected = sample_spectrum(kernel(corners(d))).eigenvalues
    counts = spectrum.multiplicities.long()
    found = torch.repeat_interleave(spectrum.eigenvalues, counts).sort(descending=True).values
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    assert float(spectrum.tail) < 1e-12


def test_parities_of_a_kernel_have_their_exact_binomial_sums():
    """K(c) = 1 + c / 2 + 3 c^4 / 4 in fractions: lambda_k = 2^-d sum over corners of K and the parity of k bits.

    1e-12 of the largest; by the spectrum's formula and as eigenvalues of the whole 2^d matrix.
    """
    for d in (5, 10):

        def eigenvalue(k: int, d: int = d) -> Fraction:
            total = Fraction(0)
            for flipped in range(d + 1):
                c = 1 - Fraction(2 * flipped, d)
                # Corners with so many bits flipped, signed by how many of these are among the first k.
                signed = sum((-1) ** i * math.comb(k, i) * math.comb(d - k, flipped - i) for i in range(flipped + 1))
                total += (1 + c / 2 + 3 * c**4 / 4) * signed
            return total / 2**d

        def kernel(x1, x2=None, d: int = d):
            c = x1 @ (x1 if x2 is None else x2).T / d
            return 1 + c / 2 + 0.75 * c**4

        expected = [float(eigenvalue(k)) for k in range(d + 1)]
        assert [k for k in range(d + 1) if expected[k]] == [0, 1, 2, 4]  # what the powers 0, 1 and 4 contain
        found = hypercube_spectrum(kernel, d).eigenvalues.numpy()
        assert np.abs(found - expected).max() < 1e-12 * expected[0]
        matrix = np.linalg.eigvalsh(kernel(corners(d)).numpy() / 2**d)
        repeated = np.sort(np.repeat(expected, [math.comb(d, k) for k in range(d + 1)]))
        assert np.abs(matrix - repeated).max() < 1e-12 * expected[0]


def test_levels_of_large_cubes_do_not_drown_in_rounding():
    # exp(x . x' / d) is a product over the bits: lambda_k = cosh(1 / d)^(d - k) sinh(1 / d)^k. In level 30 of 60 there
    # are 1e17 modes, and plain summation would give it a trace of order 1.
    for d in (60, 500):
        spectrum = hypercube_spectrum(exponential(d), d)
        k = torch.arange(d + 1, dtype=torch.float64)
        log = (d - k) * math.log(math.cosh(1 / d)) + k * math.log(math.sinh(1 / d))
        found, sizes = spectrum.eigenvalues, level_sizes(d)
        traces = log.exp() * sizes
        floor = 40 * 2.2e-16 * math.e * sizes.sqrt()
        assert ((found * sizes - traces).abs() <= floor + 1e-12 * traces).all()
        assert (found[traces < floor / 40] == 0).all()
        torch.testing.assert_close(found[:4], log[:4].exp(), rtol=1e-9, atol=0)
        assert abs(float(spectrum.tail - traces[found == 0].sum())) <= float(floor[found > 0].sum())
        assert float(spectrum.trace) == pytest.approx(math.e)


def test_hypercube_targets():
    def function(x):
        return torch.stack([x[:, 0] * x[:, 1] + 2 * x[:, 2], (x.sum(1) > 1).double(), x.prod(1)], 1)

    d, x = 7, corners(7)
    found = hypercube_target(function, d)
    coefficients = parities(d).T @ function(x) / 2**d
    torch.testing.assert_close(walsh(function(x)), coefficients, rtol=1e-12, atol=1e-14)
    level = torch.tensor([mode.bit_count() for mode in range(2**d)])
    expected = torch.stack([(coefficients[level == k] ** 2).sum(0) for k in range(d + 1)], 1)
    torch.testing.assert_close(found.power, expected)
    torch.testing.assert_close(found.power.sum(1), found.mean_square)
    assert found.missing.abs().max() < 1e-14
    single = hypercube_target(lambda x: function(x)[:, 0], d)
    torch.testing.assert_close(single.power, found.power[0])
    assert single.mean_square.shape == ()


def test_power_of_a_sample_is_unbiased():
    """Mean of 40 samples of 200 points: the standard error of a level is measured from them."""
    d, rng = 12, torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(40):
        x = torch.randint(0, 2, (200, d), generator=rng).double() * 2 - 1
        estimates.append(hypercube_target_from_sample(x, x[:, 0] * 0.6 + x[:, :2].prod(1) * 0.8).power)
    mean, error = torch.stack(estimates).mean(0), torch.stack(estimates).std(0) / 40**0.5
    assert ((mean - torch.eye(13)[1] * 0.36 - torch.eye(13)[2] * 0.64).abs() <= 5 * error)[:3].all()
    sphere = []
    for _ in range(40):
        x = torch.nn.functional.normalize(torch.randn(200, 5, generator=rng, dtype=torch.float64)) * 2
        sphere.append(sphere_target_from_sample(x, x[:, 0] * x[:, 1], degrees=4).power)
    mean, error = torch.stack(sphere).mean(0), torch.stack(sphere).std(0) / 40**0.5
    exact = 16 / (5 * 7)  # E x_1^2 x_2^2 = r^4 / (d (d + 2)), a harmonic of degree 2
    assert abs(float(mean[2]) - exact) <= 5 * float(error[2])
    assert float(mean[2]) > 4 * float(mean[1])


def test_sphere_levels_of_a_closed_form():
    # d = 3, exp(s cos): lambda_k = sqrt(pi / 2 s) I_{k + 1/2}(s); for k = 0, 1: sinh s / s, (s cosh s - sinh s) / s^2.
    s = 1.7
    spectrum = sphere_spectrum(exponential(3 / s), 3, degrees=20)
    first, second = math.sinh(s) / s, (s * math.cosh(s) - math.sinh(s)) / s**2
    assert spectrum.eigenvalues[:2].tolist() == pytest.approx([first, second], rel=1e-12)
    k = torch.arange(1, 19)
    lam = spectrum.eigenvalues  # the recurrence of Bessel functions
    left, right = lam[k - 1] - lam[k + 1], (2 * k + 1) / s * lam[k]
    torch.testing.assert_close(left[:8], right[:8], rtol=1e-6, atol=1e-14)
    assert float(spectrum.tail) < 1e-12


@pytest.mark.parametrize("d", [3, 8, 100, 3072])
def test_sphere_levels_sum_to_the_kernel(d):
    """Mercer, at any angle, with the addition theorem: sum_k m_k lambda_k P_k = K; truncated by the tail."""
    kernel = network_kernel(d)
    spectrum = sphere_spectrum(kernel, d, degrees=60)
    assert spectrum.multiplicities is not None
    cosine = torch.tensor([-0.7, 0.0, 0.4], dtype=torch.float64)
    points = torch.zeros(4, d, dtype=torch.float64)
    points[0, 0], points[1:, 0], points[1:, 1] = 1, cosine, (1 - cosine**2).sqrt()
    expected = kernel(points * d**0.5)[0, 1:]
    before, now, total = torch.zeros(3).double(), torch.ones(3).double(), torch.zeros(3).double()
    for k in range(61):
        total = total + spectrum.multiplicities[k] * spectrum.eigenvalues[k] * now
        before, now = now, ((2 * k + d - 2) * cosine * now - k * before) / (k + d - 2)
    # |P_k| at these angles is far below 1 for the missing degrees: k^(-(d - 2) / 2).
    torch.testing.assert_close(total, expected, rtol=3e-3, atol=float(spectrum.tail) * 61 ** (1 - d / 2))
    # At d = 100 levels from 20 on, of 1e22 modes and more, are below the rounding of the kernel.
    assert 0 <= float(spectrum.tail) < 0.25 * float(spectrum.trace)


def test_sphere_spectrum_agrees_with_a_sample_of_points():
    d, rng = 4, torch.Generator().manual_seed(0)
    x = 2 * torch.nn.functional.normalize(torch.randn(1500, d, generator=rng, dtype=torch.float64))
    spectrum = sphere_spectrum(network_kernel(d), d)
    assert spectrum.multiplicities is not None
    empirical = sample_spectrum(network_kernel(d)(x)).eigenvalues
    first = 0
    for k in range(4):
        size = int(spectrum.multiplicities[k])
        # The mean over a level: relative error of order sqrt(2 / N) at most, plus repulsion of second order.
        mean = float(empirical[first : first + size].mean())
        assert mean == pytest.approx(float(spectrum.eigenvalues[k]), rel=3 * (2 / 1500) ** 0.5), k
        first += size


def test_harmonics_are_counted():
    assert harmonic_counts(3, 5).tolist() == [1, 3, 5, 7, 9, 11]
    assert harmonic_counts(8, 2).tolist() == [1, 8, 35]
    for d in (4, 9):  # (2 k + d - 2) / k C(k + d - 3, k - 1)
        expected = [1] + [(2 * k + d - 2) * math.comb(k + d - 3, k - 1) // k for k in range(1, 9)]
        assert harmonic_counts(d, 8).tolist() == expected


def test_zonal_targets():
    # t^2 = 1/d P_0 + (d - 1)/d P_2 with P_2 = (d t^2 - 1)/(d - 1), whose mean square is 1 / m_2.
    d = 6
    found = zonal_target(lambda t: torch.stack([t**2, t.sign()], 1), d, degrees=30)
    m_2 = (d + 2) * (d - 1) / 2
    assert found.power[0, :4].tolist() == pytest.approx([1 / d**2, 0, ((d - 1) / d) ** 2 / m_2, 0], abs=1e-14)
    assert float(found.mean_square[0]) == pytest.approx(3 / (d * (d + 2)))
    assert float(found.missing[0]) < 1e-14
    assert float(found.mean_square[1]) == pytest.approx(1)
    assert 0 < float(found.missing[1]) < 0.1  # a jump has power in every odd degree


def test_circle_levels_are_the_eigenvalues_of_its_points():
    for points in (10, 33):
        kernel = network_kernel(2)
        spectrum = circle_spectrum(kernel, points)
        assert spectrum.multiplicities is not None
        expected = sample_spectrum(kernel(circle_points(points))).eigenvalues
        found = torch.repeat_interleave(spectrum.eigenvalues, spectrum.multiplicities.long())
        torch.testing.assert_close(found.sort(descending=True).values, expected, rtol=1e-10, atol=1e-13)
    # The continuous circle: Fourier coefficients of exp(s cos) are Bessel functions I_k(s).
    s = 0.9
    smooth = circle_spectrum(exponential(2 / s), 256, frequencies=6)
    bessel = torch.special.i0(torch.tensor(s).double()), torch.special.i1(torch.tensor(s).double())
    assert smooth.eigenvalues[:2].tolist() == pytest.approx([float(b) for b in bessel], rel=1e-6)
    # 2 I_7(s) and on, with I_k = (s / 2)^k / k! (1 + s^2 / (4 k + 4) + ...).
    assert float(smooth.tail) == pytest.approx(2 * (s / 2) ** 7 / math.factorial(7), rel=s / 16 + s**2 / 32 + 0.01)


def test_circle_targets():
    def function(x):
        angle = torch.atan2(x[:, 1], x[:, 0])
        return torch.stack([2**0.5 * (3 * angle).cos(), 1 + (2 * angle).sin(), (6 * angle).cos()], 1)

    found = circle_target(function, 12)
    assert found.power.tolist() == [
        pytest.approx([0, 0, 0, 1, 0, 0, 0], abs=1e-14),
        pytest.approx([1, 0, 0.5, 0, 0, 0, 0], abs=1e-14),
        pytest.approx([0, 0, 0, 0, 0, 0, 1], abs=1e-14),
    ]
    assert circle_target(function, 12, frequencies=2).missing.tolist() == pytest.approx([1, 0, 1], abs=1e-14)


def test_samples():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=rng, dtype=torch.float64)
    kernel = x @ x.T
    spectrum = sample_spectrum(kernel)
    assert (spectrum.eigenvalues[6:] == 0).all()
    assert float(spectrum.tail) < 1e-12
    phi = spectrum.eigenfunctions
    torch.testing.assert_close(phi.T @ phi / 40, torch.eye(40).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(phi * spectrum.eigenvalues @ phi.T, kernel, rtol=1e-12, atol=1e-12)
    y = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(spectrum.coefficients(y) @ phi.T, y.T)
    target = spectrum.target(y)
    torch.testing.assert_close(target.power.sum(1), y.square().mean(0))
    torch.testing.assert_close(spectrum.target(y[:, 1]).power, target.power[1])


def test_predictions_put_the_tail_in_the_ridge_and_the_missing_power_in_the_noise():
    d = 8
    spectrum = sphere_spectrum(network_kernel(d), d, degrees=3)
    target = Target(torch.tensor([0.0, 0.5, 0.2, 0.1]).double(), torch.tensor(1.0).double())
    found = spectrum.predict(target, [10, 100], ridge=0.1, noise=0.05)
    assert float(spectrum.tail) > 0.01
    plain = eigenlearning(
        spectrum.eigenvalues, target.power, [10, 100], 0.1 + spectrum.tail, 0.05 + 0.2, spectrum.multiplicities
    )
    torch.testing.assert_close(found.test_mse, plain.test_mse)
    torch.testing.assert_close(found.train_mse, plain.train_mse * (0.1 / (0.1 + spectrum.tail)) ** 2)


def not_positive(x1, x2=None):
    return -(x1 @ (x1 if x2 is None else x2).T)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: hypercube_spectrum(not_positive, 5), "not positive semidefinite: its level 1"),
        (lambda: hypercube_spectrum(exponential(1), 0), "d of the hypercube must be"),
        (lambda: hypercube_spectrum(lambda a, b=None: torch.ones(2), 3), "kernel must map"),
        (lambda: hypercube_spectrum(lambda a, b=None: exponential(1)(a, b) * math.nan, 3), "NaN or infinity"),
        (lambda: hypercube_target(lambda x: x[:, 0], 30), "from 1 to 20"),
        (lambda: hypercube_target(lambda x: x[:, 0] * math.nan, 3), "target must give finite values"),
        (lambda: sphere_spectrum(exponential(1), 2), "d of the sphere must be"),
        (lambda: sphere_spectrum(exponential(1), 3, degrees=1000), "degrees must be"),
        (lambda: circle_spectrum(exponential(1), 1), "points of the circle must be"),
        (lambda: circle_spectrum(exponential(1), 8, frequencies=5), "frequencies must be"),
        (lambda: sample_spectrum(torch.ones(2, 3)), "kernel must be"),
        (lambda: sample_spectrum(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), "kernel must be symmetric"),
        (lambda: sample_spectrum(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "kernel must be positive semidefinite"),
        (lambda: sample_spectrum(torch.eye(2)).target([1.0]), "y must have a row"),
        (lambda: hypercube_target_from_sample(torch.ones(1, 3), torch.ones(1)), "x and y must have the same number"),
        (lambda: walsh(torch.ones(3)), "2\\^d rows"),
    ],
)
def test_bad_spectra_and_targets(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
