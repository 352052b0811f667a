"""Studies of kernels on small inputs, every number again: by loops, numpy's solvers and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bench.studies.conservation import Conservation, conservation
from bench.studies.deep_bootstrap import DeepBootstrap, deep_bootstrap
from bench.studies.double_descent import DoubleDescent, double_descent
from bench.studies.finite_domain import FIELDS, FiniteDomain, finite_domain
from bench.studies.populations import circle, corners, cube, ntk, parities, sphere
from bench.studies.pure_modes import PureModes, pure_modes
from bench.trained import seed_of

NEAR = 1e-9
"""Relative: what two solvers of Gram matrices of condition 1e5 may differ by."""


def draws(seed: int, trials: int, population: int, n: int, noises: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Training sets without replacement [trials, n] and unit noise [trials, n, noises], in the order of the trials."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.rand(trials, population, generator=rng, dtype=torch.float64).argsort(1)[:, :n]
    noise = torch.randn(trials, n, noises, generator=rng, dtype=torch.float64)
    return rows.numpy(), noise.numpy()


def regression(kernel: np.ndarray, rows: np.ndarray, labels: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Predictions on all points, [M, ...]."""
    return kernel[:, rows] @ np.linalg.solve(kernel[np.ix_(rows, rows)] + ridge * np.eye(len(rows)), labels)


def test_the_domains_are_what_they_say() -> None:
    bits = corners(3).numpy()
    assert sorted(map(tuple, bits)) == sorted(itertools.product((-1.0, 1.0), repeat=3))
    basis = parities(3).numpy()
    for code in range(8):
        np.testing.assert_array_equal(basis[:, code], np.prod(bits[:, [j for j in range(3) if code >> j & 1]], 1))
    box = cube(4, 2, (0, 2, 4))
    np.testing.assert_array_equal(box.targets[:, 1], box.x[:, 0] * box.x[:, 1])
    ring = circle(12, 2, (0, 3))
    angles = np.arange(12) * 2 * np.pi / 12
    np.testing.assert_allclose(ring.targets[:, 1], 2**0.5 * np.cos(3 * angles), atol=1e-14)
    # On a whole domain each target is an eigenvector of the Gram matrix, with its level's eigenvalue.
    for population in (box, ring):
        applied = population.kernel @ population.targets / len(population.x)
        level = population.power.argmax(1)
        expected = population.targets * population.spectrum.eigenvalues[level]
        torch.testing.assert_close(applied, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("radius", [None, 0.5])
def test_a_sphere_has_its_radius_in_data_and_theory(radius: float | None) -> None:
    d, points = 5, 4000
    ball = sphere(d, 2, (1, 2), points, seed=3, radius=radius)
    r = d**0.5 if radius is None else radius
    np.testing.assert_allclose(ball.x.norm(dim=1), r)
    z = (ball.x[:, 0] / r).numpy()
    for column, expected in enumerate((z, d * z**2 - 1)):  # degree 2: x^2 - 1 / d
        np.testing.assert_allclose(ball.targets[:, column], expected / np.sqrt((expected**2).mean()), atol=1e-12)
    # Before scaling, the mean square is 1 up to the sample's noise: variances of z^2 d and of its square.
    assert ball.mean_square.numpy() == pytest.approx([1, 1], abs=5 * 4 / points**0.5)
    # The spectrum's trace is K(x, x), and its degree 1 the mean of K(x, x') d z z' over pairs, within 5 errors.
    assert float(ball.spectrum.trace) == pytest.approx(float(ball.kernel[0, 0]), rel=1e-12)
    first = torch.einsum("ij,id,jd->", ball.kernel, ball.x / r, ball.x / r) / points**2
    assert float(ball.spectrum.eigenvalues[1] * d) == pytest.approx(float(first) * d, rel=0.03)


def test_pure_modes_are_regressions_on_single_modes() -> None:
    settings = PureModes(domain="cube", size=4, depth=2, levels=(1, 3), n=(3, 6), trials=5, seeds=(4, 9))
    a = pure_modes(settings).arrays
    x = corners(4)
    kernel = ntk(4, 2)(x).numpy()
    targets = np.stack([x[:, 0].numpy(), x[:, :3].prod(1).numpy()], 1)
    for i, j in itertools.product(range(2), range(2)):
        rows, _ = draws(seed_of("sets", settings.seeds[i], settings.n[j]), 5, 16, settings.n[j], 2)
        f = np.stack([regression(kernel, r, targets[r]) for r in rows])
        np.testing.assert_allclose(a["kernel_mse"][i, :, j], ((f - targets) ** 2).mean((0, 1)), rtol=NEAR)
        np.testing.assert_allclose(a["kernel_learnability"][i, :, j], (f * targets).mean((0, 1)), rtol=NEAR, atol=NEAR)
    single = np.stack([kernel[:, [j]] / kernel[j, j] * targets[j] for j in range(16)])
    np.testing.assert_allclose(a["kernel_first"][0], ((single - targets) ** 2).mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(a["first_mse"][0], a["kernel_first"][0], rtol=1e-12)
    # The theory, by bisection on the whole Gram matrix's eigenvalues.
    lam = np.linalg.eigvalsh(kernel) / 16
    for j, n in enumerate(settings.n):
        low, high = 1e-12, 1e3
        for _ in range(100):
            kappa = (low * high) ** 0.5
            low, high = (kappa, high) if (lam / (lam + kappa)).sum() > n else (low, kappa)
        e_0 = n / (n - ((lam / (lam + kappa)) ** 2).sum())
        for level in range(2):
            own = targets[:, level] @ kernel @ targets[:, level] / 16**2
            learned = own / (own + kappa)
            assert a["theory_learnability"][0, level, j] == pytest.approx(learned, rel=NEAR)
            assert a["theory_mse"][0, level, j] == pytest.approx(e_0 * (1 - learned) ** 2, rel=NEAR)


def test_on_a_sphere_errors_are_over_the_points_not_drawn() -> None:
    settings = PureModes(domain="sphere", size=4, depth=1, levels=(1,), n=(10,), trials=3, points=40, seeds=(2,))
    a = pure_modes(settings).arrays
    ball = sphere(4, 1, (1,), 40, 2)
    rows, _ = draws(seed_of("sets", 2, 10), 3, 40, 10)
    errors, learnt = [], []
    for r in rows:
        rest = np.setdiff1d(np.arange(40), r)
        f, y = regression(ball.kernel.numpy(), r, ball.targets.numpy()[r])[rest], ball.targets.numpy()[rest]
        errors.append(((f - y) ** 2).mean())
        learnt.append((f * y).mean())
    assert a["kernel_mse"][0, 0, 0] == pytest.approx(np.mean(errors), rel=NEAR)
    assert a["kernel_learnability"][0, 0, 0] == pytest.approx(np.mean(learnt), rel=NEAR)


def test_a_radius_belongs_to_a_sphere() -> None:
    for domain, radius in (("cube", 1.0), ("sphere", 0.0)):
        with pytest.raises(ValueError, match="radius is that of a sphere, above 0"):
            PureModes(domain=domain, radius=radius)  # type: ignore[arg-type]


def test_budgets_are_traces() -> None:
    settings = Conservation(size=4, n=6, scales=(), ridges=(0.0, 0.7), trials=4, seeds=(1,))
    a = conservation(settings).arrays
    np.testing.assert_allclose(a["kernel_total"], 6.0, rtol=1e-12)
    kernel = ntk(4, 1)(corners(4)).numpy()
    lam = np.linalg.eigvalsh(kernel) / 16
    # Of the finite population: sum (lam + mu) / (lam + kappa) = n, mu = delta / M; by bisection.
    low, high = 1e-12, 1e3
    for _ in range(100):
        kappa = (low * high) ** 0.5
        low, high = (kappa, high) if ((lam + 0.7 / 16) / (lam + kappa)).sum() > 6 else (low, kappa)
    assert a["ridge_finite"][0, 1] == pytest.approx((lam / (lam + kappa)).sum(), rel=NEAR)
    # Tr K (K + delta)^-1 over all 8008 training sets is close to it, and that of 4 within their scatter.
    totals = []
    for rows in itertools.islice(itertools.combinations(range(16), 6), 0, None, 7):
        gram = kernel[np.ix_(rows, rows)]
        totals.append(np.trace(gram @ np.linalg.inv(gram + 0.7 * np.eye(6))))
    assert a["ridge_finite"][0, 1] == pytest.approx(np.mean(totals), rel=0.01)
    assert abs(a["ridge_total"][0, 1] - np.mean(totals)) < 5 * np.std(totals) / 2
    assert a["ridge_total"][0, 0] == pytest.approx(6, rel=1e-12)


def test_the_finite_domain_is_measured_as_it_says() -> None:
    settings = FiniteDomain(
        d=6, depth=2, cases=((5.0, 0.3, 0.2),), moments_n=(6,), bound_n=(3,), bound_depths=(2,), case_trials=7,
        trials=6, seeds=(5,),
    )  # fmt: skip
    a = finite_domain(settings).arrays
    x, basis = corners(6), parities(6).numpy()
    kernel = ntk(6, 2)(x).numpy()
    v = np.zeros(64)
    v[[0, 1, 6, 56]] = 0.3, 0.6, 0.6, 0.4
    y = basis @ v
    rows, noise = draws(seed_of("sets", 5, 0), 7, 64, 5)
    found = {name: [] for name in FIELDS}  # type: dict[str, list[float]]
    for r, e in zip(rows, noise[..., 0] * 0.2**0.5, strict=True):
        f, rest = regression(kernel, r, y[r] + e, 0.3), np.setdiff1d(np.arange(64), r)
        gram = kernel[np.ix_(r, r)]
        found["total_learnability"].append(np.trace(np.linalg.solve(gram + 0.3 * np.eye(5), gram)))
        found["population_mse"].append(((f - y) ** 2).mean())
        found["test_mse"].append(((f - y)[rest] ** 2).mean())
        found["label_train_mse"].append(((f[r] - y[r] - e) ** 2).mean())
    for place, name in enumerate(FIELDS):
        assert a["measured"][0, 0, place] == pytest.approx(np.mean(found[name]), rel=NEAR), name
    rows, _ = draws(seed_of("moments", 5, 6), 6, 64, 6)
    f = np.stack([regression(kernel, r, y[r]) for r in rows])
    tilt = np.exp(x.numpy() @ np.linspace(0.8, 0.1, 6))
    assert a["shifted"][0, 0] == pytest.approx((((f - y) ** 2) @ (tilt / tilt.sum())).mean(), rel=NEAR)
    # Variance over L^2 E / n: their ratio to the wrong column is L of each level's modes.
    learned = a["variance_wrong"][0, 0] / a["variance_ratio"][0, 0]
    lam = np.array([basis[:, 2**k - 1] @ kernel @ basis[:, 2**k - 1] / 64**2 for k in range(7)])
    kappa = lam[1] * (1 / learned[1] - 1)
    np.testing.assert_allclose(learned, lam / (lam + kappa), rtol=1e-8)
    coefficients = f @ basis / 64
    spread = coefficients[:, [1, 2, 4, 8, 16, 32]].var(0, ddof=1).mean()
    error = spread * 6 / (a["variance_ratio"][0, 0, 1] * learned[1] ** 2)
    assert error == pytest.approx(theory_error(kernel, v, basis, 6), rel=1e-8)
    rows, _ = draws(seed_of("parity", 5, 2, 3), 6, 64, 3)
    odd = x.prod(1).numpy()
    measured = np.mean([(regression(kernel, r, odd[r]) * odd).mean() for r in rows])
    assert a["parity"][0, 0, 0] == pytest.approx(measured, rel=1e-6, abs=1e-12)
    assert a["parity_bound"][0, 0, 0] == 3 / 2**5


def theory_error(kernel: np.ndarray, v: np.ndarray, basis: np.ndarray, n: int) -> float:
    """E_0 sum (1 - L)^2 v^2, by bisection; the basis diagonalises the kernel."""
    lam = np.einsum("xi,xy,yi->i", basis, kernel, basis) / len(kernel) ** 2
    low, high = 1e-12, 1e3
    for _ in range(100):
        kappa = (low * high) ** 0.5
        low, high = (kappa, high) if (lam / (lam + kappa)).sum() > n else (low, kappa)
    learned = lam / (lam + kappa)
    return float(n / (n - (learned**2).sum()) * ((1 - learned) ** 2 * v**2).sum())


def test_the_deep_bootstrap_is_ridge_regression_on_gaussian_features() -> None:
    settings = DeepBootstrap(modes=30, n=(6,), tau=(2.0, 50.0), gaussian_trials=3, population=0, seeds=(8,))
    a = deep_bootstrap(settings).arrays
    lam, v = np.arange(1, 31.0) ** -2, np.arange(1, 31.0) ** -1
    rng = torch.Generator().manual_seed(seed_of("gaussian", 8, 6))
    sums = np.zeros((4, 2))
    for _ in range(3):
        z = torch.randn(6, 30, generator=rng, dtype=torch.float64).numpy()
        noise = torch.randn(6, generator=rng, dtype=torch.float64).numpy()
        for column, tau in enumerate(settings.tau):
            ridge, psi = 6 / tau, z * lam**0.5
            for place, labels in enumerate((z @ v, noise)):  # the primal solution, 30 weights
                w = lam**0.5 * np.linalg.solve(psi.T @ psi + ridge * np.eye(30), psi.T @ labels)
                test = ((w - v) ** 2).sum() if place == 0 else 1 + (w**2).sum()
                sums[2 * place : 2 * place + 2, column] += test, ((z @ w - labels) ** 2).mean()
    for place, name in enumerate(("test", "train", "noise_test", "noise_train")):
        np.testing.assert_allclose(a[name][0, 0], sums[place] / 3, rtol=NEAR)
    np.testing.assert_allclose(a["ideal"][0], [((v / (1 + lam * tau)) ** 2).sum() for tau in settings.tau])


def test_random_features_are_regressions_on_them() -> None:
    settings = DoubleDescent(n=6, k=(3, 20), modes=12, d=4, trials=3, seeds=(1,))
    a = double_descent(settings).arrays
    lam, v = np.arange(1, 13.0) ** -1.3, np.arange(1, 13.0) ** -0.6
    x = corners(4)
    y = (0.8 * x[:, 0] + 0.6 * x[:, 1] * x[:, 2]).numpy()
    for column, k in enumerate(settings.k):
        rng = torch.Generator().manual_seed(seed_of("features", 1, k))
        z = torch.randn(3, 6, 12, generator=rng, dtype=torch.float64).numpy()
        weights = torch.randn(3, 12, k, generator=rng, dtype=torch.float64).numpy()
        labels = z @ v + 0.1**0.5 * torch.randn(3, 6, generator=rng, dtype=torch.float64).numpy()
        errors = []
        for one, mixed, label in zip(z, weights, labels, strict=True):
            mixing = np.sqrt(lam)[:, None] * mixed / k**0.5
            psi = one @ mixing
            w = mixing @ np.linalg.solve(psi.T @ psi + settings.ridge * np.eye(k), psi.T @ label)
            errors.append(((w - v) ** 2).sum() + settings.noise)
        assert a["gaussian"][0, column] == pytest.approx(np.mean(errors), rel=NEAR)
        medians = []
        for _ in range(3):
            w, b = (torch.randn(*shape, generator=rng, dtype=torch.float64).numpy() for shape in ((k, 4), (k,)))
            psi = np.maximum(0.5**0.5 * x.numpy() @ w.T + 0.1 * b, 0)
            rows = torch.randperm(16, generator=rng)[:6].numpy()
            medians.append(((psi @ np.linalg.pinv(psi[rows], rcond=1e-13) @ y[rows] - y) ** 2).mean())
        assert a["relu"][0, column] == pytest.approx(np.median(medians), rel=1e-6)
