"""The hard-margin SVM against scikit-learn, whose own has an intercept (a mirrored data set takes it away)."""

import numpy as np
import pytest
import torch
from sklearn.svm import SVC, LinearSVC

from bench.margin import MarginPredictor, nearest_point


def problem(n: int, n_test: int, d: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n + n_test, d))
    y = np.sign(x[:, :1] * x[:, 1:2])
    distance = ((x[:, None] - x[None, :n]) ** 2).sum(-1)
    return np.exp(-distance / d), y[:n]


def scikit_learn(K: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, SVC]:
    """Decision values on all rows of K of the machine without intercept.

    Every point is given again with the opposite features and label: the best intercept is zero then, and the rest as
    it was.
    """
    n = len(y)
    mirrored = np.block([[K[:n], -K[:n]], [-K[:n], K[:n]]])
    machine = SVC(C=1e12, kernel="precomputed", tol=1e-8).fit(mirrored, np.concatenate([y, -y])[:, 0])
    return machine.decision_function(np.concatenate([K, -K], 1)), machine


@pytest.mark.parametrize(("n", "d"), [(30, 3), (200, 10)])
def test_two_classes_against_scikit_learn(n, d):
    K, y = problem(n, 40, d)
    expected, machine = scikit_learn(K, y)
    predictor = MarginPredictor(K[:n]).fit(y)
    # A relative duality gap of 1e-10 leaves 1e-5 of |f|, scikit-learn's tolerance of 1e-8 less.
    np.testing.assert_allclose(predictor.predict(K)[:, 0], expected, atol=3e-5 * np.abs(expected).max())
    on_train = predictor.predict(K[:n]).numpy() * y
    assert on_train.min() > 1 - 1e-5
    support = np.flatnonzero(predictor.weights.abs().numpy()[:, 0] > 1e-6 * float(predictor.weights.abs().max()))
    assert set(support) == {int(i) % n for i in machine.support_[np.abs(machine.dual_coef_[0]) > 1e-6]}
    norm = float(np.sqrt(predictor.weights[:, 0].numpy() @ K[:n] @ predictor.weights[:, 0].numpy()))
    assert predictor.margin == pytest.approx(1 / norm, rel=1e-6)


def test_classes_against_scikit_learns_crammer_and_singer():
    generator = np.random.default_rng(3)
    x, classes = generator.normal(size=(40, 30)), generator.integers(4, size=40)
    y = np.eye(4)[classes]
    machine = LinearSVC(
        C=1e4, multi_class="crammer_singer", fit_intercept=False, tol=1e-7, max_iter=10**6, random_state=0
    )
    expected = machine.fit(x[:30], classes[:30]).decision_function(x)
    predictor = MarginPredictor(x[:30] @ x[:30].T).fit(y[:30])
    np.testing.assert_allclose(predictor.predict(x @ x[:30].T), expected, atol=1e-4)
    full = np.einsum("ij,cd->ijcd", x @ x[:30].T, np.eye(4))
    np.testing.assert_allclose(MarginPredictor(full[:30]).fit(y[:30]).predict(full), expected, atol=1e-4)


def test_a_full_kernel_meets_the_conditions_of_optimality():
    """Primal feasible, dual feasible, and complementary: that is the solution, by convexity."""
    generator = np.random.default_rng(5)
    n, c = 12, 3
    J = generator.normal(size=(n, c, 60))
    full = np.einsum("icp,jdp->ijcd", J, J)
    labels = generator.integers(c, size=n)
    predictor = MarginPredictor(full).fit(np.eye(c)[labels])
    f, w = predictor.predict(full).numpy(), predictor.weights.reshape(n, c).numpy()
    others = np.arange(c) != labels[:, None]
    margins = f[np.arange(n), labels][:, None] - f
    assert margins[others].min() > 1 - 1e-5
    assert (w[others] <= 0).all()
    np.testing.assert_allclose(w.sum(1), 0, atol=1e-12)
    assert np.abs(w[others] * (margins[others] - 1)).max() < 1e-5 * np.abs(w).max()


def test_a_singular_kernel_that_separates_is_no_problem():
    generator = np.random.default_rng(7)
    x = generator.normal(size=(60, 3))
    y = np.sign(x @ [[1.0], [0.5], [0.2]])
    K = x @ x.T
    expected, _ = scikit_learn(K, y)
    np.testing.assert_allclose(MarginPredictor(K).fit(y).predict(K)[:, 0], expected, atol=1e-4 * np.abs(expected).max())


def test_what_cannot_be_separated_is_said_so():
    generator = np.random.default_rng(9)
    x = generator.normal(size=(60, 3))
    with pytest.raises(ValueError, match="does not separate the classes"):
        MarginPredictor(x @ x.T).fit(generator.choice([-1.0, 1.0], size=60))
    twice = np.concatenate([x, x])  # a point with both labels
    with pytest.raises(ValueError, match="does not separate the classes"):
        MarginPredictor(np.exp(-((twice[:, None] - twice) ** 2).sum(-1))).fit(np.repeat([1.0, -1.0], 60))


def test_one_class_alone_is_separated_by_its_nearest_point():
    a, squared = nearest_point(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)))
    assert squared == pytest.approx(3 / 4)  # weights 3/4 and 1/4
    np.testing.assert_allclose(a, [0.75, 0.25], atol=1e-5)
