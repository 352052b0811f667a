"""Kernel logistic flow against a stiff ODE solver in float64, and against gradient descent written out."""

import numpy as np
import pytest
import scipy.integrate
import scipy.special

from bench.logistic import LogisticPredictor, logistic_course


def problem(n: int = 14, n_test: int = 6, c: int = 1, features: int = 40, seed: int = 0):
    generator = np.random.default_rng(seed)
    # Unequal scales: condition numbers of some 1e4, as kernels of networks have.
    phi = generator.normal(size=(n + n_test, c, features)) * np.geomspace(1, 0.01, features)
    full = np.einsum("icp,jdp->ijcd", phi, phi[:n])
    y = generator.choice([-1.0, 1.0], size=(n, 1)) if c == 1 else np.eye(c)[generator.integers(c, size=n)] - 0.1
    return full[:n], full[n:], y, 0.3 * generator.normal(size=(n + n_test, c))


def matrix(full):
    n1, n2, c, _ = full.shape
    return full.transpose(0, 2, 1, 3).reshape(n1 * c, n2 * c)


def slope(f, y):
    if y.shape[1] == 1:
        return -y * scipy.special.expit(-y * f)
    return scipy.special.softmax(f, 1) - (y == y.max(1, keepdims=True))


def loss(f, y):
    if y.shape[1] == 1:
        return np.logaddexp(0, -y * f).mean()
    return (scipy.special.logsumexp(f, axis=1) - f[y == y.max(1, keepdims=True)]).mean()


def reference(K, k, y, f_0, end):
    """The outputs at the test points and the time at which the train cross-entropy meets its end, by Radau."""
    n, c = y.shape
    M, rows = matrix(K), matrix(np.concatenate([K, k]))

    def outputs(w):
        return f_0 + (rows @ w).reshape(-1, c)

    def change(_, w):
        return -slope(outputs(w)[:n], y).ravel() / n

    def met(_, w):
        return loss(outputs(w)[:n], y) - end

    met.terminal = True
    found = scipy.integrate.solve_ivp(change, (0, 1e9), np.zeros(n * c), "Radau", rtol=1e-9, atol=1e-11, events=met)
    assert len(found.t_events[0]) == 1, M.shape
    return outputs(found.y_events[0][0])[n:], found.t_events[0][0]


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("end", [0.2, 1e-3])
def test_the_flow_is_that_of_a_stiff_solver(c, end):
    K, k, y, f_0 = problem(c=c)
    expected, time = reference(K, k, y, f_0, end)
    n = len(y)
    predictor = LogisticPredictor(K, base="init", cross_entropy=end).fit(y, f_0[:n])
    # A step's error is 1e-5 of the outputs, and there are some hundred steps, which the flow contracts.
    np.testing.assert_allclose(predictor.predict(k, f_0[n:]), expected, atol=1e-3 * np.abs(expected).max())
    assert predictor.time == pytest.approx(time, rel=1e-3)
    reached = f_0[:n] + predictor.gram.predict(K, predictor.weights).numpy()
    assert loss(reached, y) == pytest.approx(end, rel=1e-4)
    # The control: the same flow from zero is another function.
    zero = LogisticPredictor(K, cross_entropy=end).fit(y).predict(k)
    assert np.abs(zero.numpy() - expected).max() > 0.01 * np.abs(expected).max()


def test_one_kernel_for_all_outputs_is_the_full_kernel_that_repeats_it():
    K, k, y, _ = problem(c=3)
    one = LogisticPredictor(K[:, :, 0, 0], cross_entropy=0.05).fit(y).predict(k[:, :, 0, 0])
    repeated = [np.einsum("ij,cd->ijcd", kernel[:, :, 0, 0], np.eye(3)) for kernel in (K, k)]
    full = LogisticPredictor(repeated[0], cross_entropy=0.05).fit(y).predict(repeated[1])
    np.testing.assert_allclose(one, full, atol=1e-6)


def test_discrete_steps_are_gradient_descent_with_momentum():
    K, k, y, f_0 = problem(c=3)
    n, M, m = len(y), matrix(K), matrix(k)
    steps, momenta = [0.5, 2.0, 1.0, 3.0], [0.0, 0.25, 0.4, 0.5]
    rows = np.concatenate([M, m])
    way, reached = [f_0.reshape(-1, 1)], f_0.reshape(-1, 1)
    for eta, momentum in zip(steps, momenta, strict=True):
        now = way[-1][: 3 * n].reshape(n, 3)
        before, reached = reached, way[-1] - eta / n * rows @ slope(now, y).reshape(-1, 1)
        way.append(reached + momentum * (reached - before))
    at = [0, 2, 4]
    found = logistic_course(np.concatenate([K, k]), y, steps, at, momenta=momenta, f_0=f_0)
    np.testing.assert_allclose(found, [way[count].reshape(-1, 3) for count in at], rtol=1e-10, atol=1e-12)
    plain = logistic_course(np.concatenate([K, k]), y, steps, [4], f_0=f_0)
    assert np.abs(plain[0].numpy() - way[4].reshape(-1, 3)).max() > 0.01


def test_classes_that_the_kernel_cannot_tell_apart_are_said_so():
    x = np.array([[1.0], [1.0], [2.0]])
    y = np.array([[1.0], [-1.0], [1.0]])  # one point, two labels: cross-entropy is at least 2/3 log 2
    with pytest.raises(ValueError, match="does not tell the classes apart"):
        LogisticPredictor(x @ x.T, cross_entropy=0.3).fit(y)
    assert LogisticPredictor(x @ x.T, cross_entropy=0.6).fit(y).time > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_entropy": 0.0}, "cross_entropy must be a positive number"),
        ({"cross_entropy": 0.1, "base": "trained"}, "any kernel matches"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LogisticPredictor(np.eye(3), **settings)


def test_labels_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"labels \+1 and -1"):
        LogisticPredictor(np.eye(3), 0.1).fit(np.array([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="loss must be logistic or softmax"):
        LogisticPredictor(np.eye(3), 0.1, loss="mse").fit(np.array([-1.0, 1.0, 1.0]))


def test_an_end_above_the_start_is_refused():
    with pytest.raises(ValueError, match=r"starts at 0\.6931, below the 0\.8"):
        LogisticPredictor(np.eye(3), cross_entropy=0.8).fit(np.array([1.0, -1.0, 1.0]))
