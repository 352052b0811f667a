"""Kernel predictors against numpy and matrix exponentials; and why the trained network is no base."""

import numpy as np
import pytest
import scipy.linalg
import torch

from bench.predict import KernelPredictor, course


def problem(n: int = 12, n_test: int = 5, c: int = 1, seed: int = 0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n + n_test, 30)) / 30**0.5
    K = features @ features[:n].T
    return K[:n], K[n:], generator.normal(size=(n, c)), generator.normal(size=(n + n_test, c))


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_regression_from_zero_and_from_the_start(ridge):
    K, k, y, f_0 = problem(c=2)
    inverse = np.linalg.inv(K + ridge * np.eye(12))
    # The jitter is 1e-10 of the diagonal; times the inverse's norm it is what the prediction may be off.
    tolerance = 1e-9 * np.linalg.norm(inverse, 2) * np.abs(k @ inverse @ y).max()
    zero = KernelPredictor(K, ridge).fit(y).predict(k)
    np.testing.assert_allclose(zero, k @ inverse @ y, atol=tolerance)
    start = KernelPredictor(K, ridge, base="init").fit(y, f_0[:12]).predict(k, f_0[12:])
    np.testing.assert_allclose(start, f_0[12:] + k @ inverse @ (y - f_0[:12]), atol=10 * tolerance)


def test_multi_output_kernels_are_sample_major():
    generator = np.random.default_rng(1)
    n, n_test, c = 6, 3, 2
    J = generator.normal(size=(n + n_test, c, 40))
    full = np.einsum("icp,jdp->ijcd", J, J[:n])
    y = generator.normal(size=(n, c))
    rows = J.reshape(-1, 40)
    expected = rows[n * c :] @ rows[: n * c].T @ np.linalg.solve(rows[: n * c] @ rows[: n * c].T, y.reshape(-1))
    found = KernelPredictor(full[:n]).fit(y).predict(full[n:])
    np.testing.assert_allclose(found, expected.reshape(n_test, c), atol=1e-6)
    # The control: outputs in the other order are another prediction.
    wrong = KernelPredictor(full[:n]).fit(y[:, ::-1].copy()).predict(full[n:])
    assert np.abs(wrong.numpy() - expected.reshape(n_test, c)).max() > 0.1


def test_flow_to_a_time_is_the_matrix_exponential():
    K, k, y, _ = problem()
    for time in (0.1, 10.0, 1e6):
        grown = np.linalg.solve(K, (np.eye(12) - scipy.linalg.expm(-K * time / 12)) @ y)
        np.testing.assert_allclose(KernelPredictor(K, time=time).fit(y).predict(k), k @ grown, rtol=1e-7, atol=1e-9)
    endless = KernelPredictor(K, time=1e12).fit(y).predict(k)
    np.testing.assert_allclose(endless, KernelPredictor(K).fit(y).predict(k), atol=1e-6)


def test_directions_that_the_kernel_does_not_see_gather_weight_all_the_time():
    """dw/dt = (y - K w) / n: where K is zero the residual stays, and so does the rate y / n."""
    K, _, y, _ = problem()
    twice, both = np.block([[K, K], [K, K]]), np.vstack([y, -y])  # K w is zero for what differs in sign
    for time in (3.0, [1.0, 2.0]):
        weights = KernelPredictor(twice, time=time).fit(both).weights
        # The eigenvalues there are zero to rounding, 1e-15 of the largest; another rate would be off by factors.
        np.testing.assert_allclose(weights, both * 3.0 / 24, rtol=1e-10, atol=1e-12)


def test_discrete_steps_are_gradient_descent():
    K, k, y, _ = problem()
    steps, f, p = [0.5, 3.0, 8.0, 1.0], np.zeros_like(y), np.zeros((5, 1))
    for eta in steps:
        f, p = f - eta / 12 * K @ (f - y), p - eta / 12 * k @ (f - y)
    np.testing.assert_allclose(KernelPredictor(K, time=steps).fit(y).predict(k), p, rtol=1e-10, atol=1e-12)
    assert not np.allclose(KernelPredictor(K, time=sum(steps)).fit(y).predict(k), p, atol=1e-3)  # flow is another


def test_a_singular_kernel_gives_the_minimum_norm_prediction():
    K, k, y, _ = problem()
    twice = np.block([[K, K], [K, K]])
    p = KernelPredictor(twice).fit(np.vstack([y, y])).predict(np.hstack([k, k]))
    np.testing.assert_allclose(p, k @ np.linalg.solve(K, y), atol=1e-5)


def test_any_kernel_matches_a_network_that_is_its_own_base():
    """f_T + K (y - f_T(X)): after training the residual is small, so what the kernel does with it is, too."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    f_T = np.sin(3 * x[:, :1]) * x[:, 1:2]
    y = f_T[:100] + 1e-3 * generator.normal(size=(100, 1))  # relative train MSE about 1e-5
    laplace = np.exp(-np.linalg.norm(x[:, None] - x[None, :100], axis=2))

    def r2(p: np.ndarray) -> float:
        return float(1 - ((p - f_T[100:]) ** 2).sum() / ((f_T[100:] - f_T[100:].mean()) ** 2).sum())

    tautology = f_T[100:] + laplace[100:] @ np.linalg.solve(laplace[:100], y - f_T[:100])
    assert r2(tautology) > 0.999
    assert r2(KernelPredictor(laplace[:100]).fit(y).predict(laplace[100:]).numpy()) < 0.9
    for base in ("trained", "f_T"):
        with pytest.raises(ValueError, match="any kernel matches"):
            KernelPredictor(laplace[:100], base=base)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"ridge": -1.0}, "ridge"), ({"time": -1.0}, "time"), ({"time": 1.0, "ridge": 0.1}, "time and ridge"),
     ({"k_train": np.ones((3, 4))}, "k_train"), ({"k_train": np.full((3, 3), np.nan)}, "nan")],
)  # fmt: skip
def test_what_is_no_kernel_predictor_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        KernelPredictor(**{"k_train": np.eye(3), **settings})


def test_shapes_that_do_not_fit_are_refused():
    K, k, y, _ = problem()
    with pytest.raises(ValueError, match="fit before predict"):
        KernelPredictor(K).predict(k)
    with pytest.raises(ValueError, match="rows"):
        KernelPredictor(K).fit(y[:5])
    with pytest.raises(ValueError, match="f_0"):
        KernelPredictor(K, base="init").fit(y)
    with pytest.raises(ValueError, match="k_test_train"):
        KernelPredictor(K).fit(y).predict(k[:, :4])
    negative = K - 2 * np.linalg.eigvalsh(K)[-1] * np.eye(12)
    with pytest.raises(ValueError, match="positive semidefinite"):
        KernelPredictor(negative, time=1.0).fit(y)


def test_arrays_and_tensors_of_any_precision_are_taken():
    K, k, y, _ = problem()
    one = KernelPredictor(torch.tensor(K, dtype=torch.float32)).fit(y[:, 0]).predict(k.tolist())
    assert one.dtype == torch.float64
    assert one.shape == (5, 1)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_course_is_every_step_of_gradient_descent(momentum):
    generator = np.random.default_rng(2)
    J = generator.normal(size=(9, 2, 30))
    full = np.einsum("icp,jdp->ijcd", J, J[:6])
    rows = full.transpose(0, 2, 1, 3).reshape(18, 12)
    y, f_0 = generator.normal(size=(6, 2)), generator.normal(size=(9, 2))
    steps, momenta = 0.1 * generator.uniform(size=12), momentum * np.arange(12) / 12
    way, reached = [f_0.reshape(-1, 1)], f_0.reshape(-1, 1)
    for eta, share in zip(steps, momenta, strict=True):
        before, reached = reached, way[-1] - eta / 6 * rows @ (way[-1][:12] - y.reshape(-1, 1))
        way.append(reached + share * (reached - before))
    at = [0, 1, 5, 5, 12]
    found = course(full, y, steps, at, momenta, f_0)
    np.testing.assert_allclose(found, [way[k].reshape(9, 2) for k in at], rtol=1e-9, atol=1e-11)
    parts = KernelPredictor(full[:6], base="init", time=steps, momenta=momenta).fit(y, f_0[:6])
    np.testing.assert_allclose(parts.predict(full[6:], f_0[6:]), found[-1, 6:], rtol=1e-9, atol=1e-11)
