"""Comparisons against numpy written out by hand, on small trained networks."""

import dataclasses

import numpy as np
import pytest
import torch

from bench.compare import (
    EigenlearningTheory,
    Empirical,
    Features,
    InfiniteWidth,
    Linearised,
    Rivals,
    Trajectory,
    UnavailableError,
    metrics,
)
from bench.compare.linear import conjugate_kernel, linearised
from bench.compare.motion import curve_steps
from bench.compare.predictions import infinite_kernels
from bench.compare.rivals import agop_laplace, bandwidth
from bench.ntk import empirical_ntk
from bench.predict import KernelPredictor
from bench.train import Trainer
from bench.trained import Trained, members, seed_of
from models.cnn import cnn
from models.mlp import mlp
from tasks.hypercube import staircase
from tasks.task import Task


@pytest.fixture(scope="module")
def trained() -> Trained:
    tasks = [staircase(d=8, n_train=24, n_test=40, seed=seed_of("data", i)) for i in range(2)]
    net = mlp(8, 64, 1, 1, b_std=0.4, readout_b_std=0.3)
    return Trainer(richness=1.0).fit(net, tasks, members(2, 2))


def named(scores, name):
    return next(score for score in scores if score.name == name)


def test_metrics_are_their_formulas():
    p, f, y = torch.randn(3, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    P, F, Y = p.numpy(), f.numpy(), y.numpy()
    assert metrics.r2(p, f) == pytest.approx(1 - ((P - F) ** 2).sum() / ((F - F.mean(0)) ** 2).sum())
    assert metrics.skill(p, f, y) == pytest.approx(1 - ((P - F) ** 2).sum() / ((Y - F) ** 2).sum())
    assert metrics.relative_error(p, y) == pytest.approx(((P - Y) ** 2).sum() / (Y**2).sum())
    assert metrics.error_correlation(p, f, y) == pytest.approx(np.corrcoef((P - Y).ravel(), (F - Y).ravel())[0, 1])
    assert metrics.agreement(p, f) == pytest.approx((P.argmax(1) == F.argmax(1)).mean())
    assert metrics.skill(y, f, y) == 0


def test_the_after_kernel_is_regression_with_the_final_jacobian(trained):
    values = []
    for i in range(len(trained.members)):
        task = trained.task(i)
        x = torch.cat([task.x_train, task.x_test]).double()
        net = trained.net.double()
        names = list(trained.params)
        params = [trained.params_T[name][i].double() for name in names]

        def outputs(*values, net=net, names=names, x=x):
            return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))[:, 0]

        jacobian = torch.cat([J.flatten(1) for J in torch.autograd.functional.jacobian(outputs, tuple(params))], 1)
        K = (jacobian @ jacobian.T).numpy()
        n, F = task.n_train, trained.f_T[i, task.n_train :].numpy()
        p = K[n:, :n] @ np.linalg.solve(K[:n, :n], task.y_train.double().numpy())
        values.append(1 - ((p - F) ** 2).sum() / ((F - F.mean(0)) ** 2).sum())
    score = named(Empirical("after")(trained), "after/r2")
    assert score.value == pytest.approx(np.mean(values), abs=1e-6)  # the jitter is 1e-10 of the diagonal
    assert score.n_seeds == 4
    assert named(Empirical("initial")(trained), "initial/r2").value != pytest.approx(np.mean(values), abs=1e-3)


def test_ceiling_halves_the_noise_between_two_networks(trained):
    between = []
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        n = trained.task(i).n_train
        F, G = trained.f_T[i, n:].numpy(), trained.f_T[j, n:].numpy()
        between.append(1 - ((F - G) ** 2).sum() / ((F - F.mean(0)) ** 2).sum())
    score = named(InfiniteWidth()(trained), "infinite_ntk/r2")
    assert score.ceiling == pytest.approx(1 - (1 - np.mean(between)) / 2)


def test_labels_have_no_skill_and_the_floor_is_the_best_rival(trained):
    rivals = Rivals()(trained)
    assert named(rivals, "labels/skill").value == 0
    best = max(named(rivals, f"{name}/r2").value for name in ("laplace", "agop_laplace", "labels"))
    assert named(Empirical("after")(trained), "after/r2").floor == pytest.approx(best)


def test_one_member_has_neither_error_nor_ceiling(trained):
    score = named(Empirical("after")(trained.select([0])), "after/r2")
    assert np.isnan(score.standard_error)
    assert score.ceiling is None


def test_agop_finds_the_one_direction_that_matters():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, dtype=torch.float64, generator=generator)
    y = torch.sin(2 * x[:, :1])

    def error(y):
        kernel = agop_laplace(x, y[:200])
        return metrics.relative_error(KernelPredictor(kernel[:200]).fit(y[:200]).predict(kernel[200:]), y[200:])

    assert error(y) < 0.05
    assert error(y[torch.randperm(300, generator=generator)]) > 0.5


def test_bandwidth_is_the_mean_distance_of_pairs():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert float(bandwidth(x)) == pytest.approx(2.0)


@pytest.mark.parametrize("readout", ["flatten", "gap"])
def test_a_convolution_has_its_infinite_width_column(readout):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 1, 4, 4, generator=generator), torch.randn(12, 1, generator=generator)
    net = cnn(1, 512, 1, 1, "relu", readout, 4, b_std=0.3)
    trained = Trainer(richness="ntk", tolerance=1e-3).fit(net, [Task("images", x[:8], y[:8], x[8:], y[8:])],
                                                          members(1, 2))  # fmt: skip
    score = named(InfiniteWidth()(trained), "infinite_ntk/r2")
    assert np.isfinite(score.value)
    initial = torch.stack([trained.ntk[i, 0][:, :, 0, 0] for i in range(2)]).mean(0)
    limit = infinite_kernels(trained)[0]["ntk"]
    # One hidden layer's kernel is unbiased, and scatters by a few times 1 / sqrt(width).
    assert (initial - limit).norm() / limit.norm() < 5 / np.sqrt(512)
    assert score.n_seeds == 2


def test_what_has_no_infinite_width_limit_is_said_to_have_none():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 1, 4, 4, generator=generator), torch.randn(12, 1, generator=generator)
    first, second = (layer for layer in mlp(16, 16, 1, 1) if list(layer.parameters()))
    net = torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.MaxPool1d(1), second)
    trained = Trainer(tolerance=1e-2).fit(net, [Task("images", x[:8], y[:8], x[8:], y[8:])], members(1, 1))
    with pytest.raises(UnavailableError, match="MaxPool1d"):
        InfiniteWidth()(trained)


def test_three_outputs_run_through_every_comparison():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 6, generator=generator), torch.randn(30, 3, generator=generator)
    task = Task("three", x[:20], y[:20], x[20:], y[20:])
    trained = Trainer(richness=1.0, tolerance=1e-3).fit(mlp(6, 64, 1, 3), [task], members(1, 2))
    for comparison in (Empirical("after"), Empirical("initial"), InfiniteWidth(), Rivals()):
        values = {score.name: score.value for score in comparison(trained)}
        values.pop("labels/error_correlation", None)  # the labels have no error: nothing to correlate
        assert np.isfinite(list(values.values())).all(), comparison


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="targets"):
        Empirical("after", targets=("f_T",))


def test_linearised_is_gradient_descent_on_the_linear_model(trained):
    arrays, scores = Linearised().arrays(trained), Linearised()(trained)
    largest = named(scores, "linearised/largest_distance").per_member
    for i, history in enumerate(trained.history):
        task = trained.task(i)
        K, n, y = trained.ntk[i, 0][:, :, 0, 0].numpy(), task.n_train, task.y_train.double().numpy()
        way = [np.zeros((len(K), 1))]
        for step in history.steps.tolist():
            way.append(way[-1] - step / n * K @ (way[-1][:n] - y))
        np.testing.assert_allclose(linearised(trained, i, [len(way) - 1])[0], way[-1], atol=1e-9)
        losses = np.array([((f[:n] - y) ** 2).sum() / (y**2).sum() for f in way])
        kept = curve_steps(history)
        np.testing.assert_allclose(arrays["linearised_loss"][i, : len(kept)], losses[kept], rtol=1e-8, atol=1e-12)
        # Beside the network's own outputs: its parameters at each snapshot, in numpy's float64.
        distances = []
        for s, count in enumerate(history.snapshot_steps.tolist()):
            then = {name: value[i, s].double() for name, value in trained.params.items()}
            first = {name: value[i, 0].double() for name, value in trained.params.items()}
            x, net = task.x_test.double(), trained.net.double()
            f = torch.func.functional_call(net, then, (x,)) - torch.func.functional_call(net, first, (x,))
            distances.append(np.linalg.norm(f.detach().numpy() / trained.gamma[i] - way[count][n:]))
        expected = np.array(distances) / np.linalg.norm(trained.f_T[i, n:])
        np.testing.assert_allclose(arrays["snapshot_linearised_distance"][i], expected, rtol=1e-6, atol=1e-9)
        assert largest[i] == pytest.approx(expected.max(), rel=1e-6)
        assert expected.max() > 0.1  # at richness 1 they part


def test_the_conjugate_kernel_is_the_readouts_share_of_the_after_kernel(trained):
    task = trained.task(0)
    x = torch.cat([task.x_train, task.x_test]).double()
    params = {name: value[:1].double() for name, value in trained.params_T.items()}
    shares = empirical_ntk(trained.net, x, x[: task.n_train], by_layer=True, params=params)
    readout = list(shares.values())[-1][0, :, :, 0, 0]
    torch.testing.assert_close(conjugate_kernel(trained, 0), readout, rtol=1e-9, atol=1e-12)
    assert named(Features()(trained), "features/r2").n_seeds == 4


def test_the_trajectory_ends_where_the_after_kernel_is(trained):
    arrays = Trajectory().arrays(trained)
    after = named(Empirical("after")(trained), "after/r2")
    np.testing.assert_allclose(arrays["snapshot_r2"][:, -1], after.per_member, rtol=1e-12)
    np.testing.assert_allclose(arrays["snapshot_motion"][:, 0], 0)
    np.testing.assert_allclose(arrays["snapshot_network_test_error"][:, 0], 1)  # f_0 = 0
    assert (np.diff(arrays["snapshot_time"]) >= 0).all()


def test_multi_output_forms_are_kernels_of_their_own_label():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 6, generator=generator), torch.randn(30, 3, generator=generator)
    task = Task("three", x[:20], y[:20], x[20:], y[20:])
    trained = Trainer(richness=1.0, tolerance=1e-3).fit(mlp(6, 64, 1, 3), [task], members(1, 1))
    scores, K = Empirical("after")(trained), trained.ntk[0, -1].numpy()
    F = trained.f_T[0, 20:].numpy()
    for form, kernel in {"trace": np.einsum("ijcc->ij", K), "sum": K.sum((2, 3))}.items():
        p = kernel[20:] @ np.linalg.solve(kernel[:20], y[:20].double().numpy())
        value = 1 - ((p - F) ** 2).sum() / ((F - F.mean(0)) ** 2).sum()
        assert named(scores, f"after#{form}/r2").value == pytest.approx(value, abs=1e-6)  # jitter 1e-10
    values = [named(scores, f"after{form}/r2").value for form in ("", "#trace", "#sum")]
    assert len(set(values)) == 3


def test_without_test_labels_only_what_needs_none_is_scored(trained):
    unlabelled = dataclasses.replace(trained, labelled=False)
    for comparison in (Empirical("after"), InfiniteWidth(), Rivals(), Features()):
        scores = {score.name.partition("/")[2]: score for score in comparison(unlabelled)}
        assert set(scores) == {"r2", "squared_correlation", "relative_l2", "class_agreement"}
        assert all(score.floor is None or np.isfinite(score.floor) for score in scores.values())
    assert not any(score.name.startswith("labels") for score in Rivals()(unlabelled))
    with pytest.raises(UnavailableError, match="test labels"):
        Trajectory().arrays(unlabelled)


def eigenlearning_scores(tasks: list[Task], richness: float, noise: float) -> dict[str, float]:
    net = mlp(tasks[0].x_shape[0], 128, 1, 1, b_std=0.3, readout_b_std=0.3)
    trained = Trainer(richness, tolerance=1e-3, snapshots=2).fit(net, tasks, members(len(tasks), 1))
    assert set(trained.status) == {"done"}
    return {score.name: score.value for score in EigenlearningTheory()(trained)}


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_eigenlearning_beside_each_kernel(noise):
    """Staircase, four data draws: fixed kernels meet the theory, K_T only on fresh points.

    Single draws of this size scatter by 10 %, their mean over four by 5 %: 20 % is four standard errors.
    """
    tasks = [staircase(d=10, n_train=128, n_test=384, seed=i, noise=noise) for i in range(4)]
    found = eigenlearning_scores(tasks, 1.0, noise)
    for kind in ("infinite", "initial"):
        assert found[f"eigenlearning_{kind}/ratio"] == pytest.approx(1, abs=0.2)
        product = found[f"eigenlearning_{kind}/measured"] / found[f"eigenlearning_{kind}/predicted"]
        assert product == pytest.approx(found[f"eigenlearning_{kind}/ratio"], rel=0.1)
        assert found[f"eigenlearning_{kind}/network_ratio"] < 0.8  # a network that learns features errs less
    if noise:  # without, K_T has a few modes only, and the theory is a third too low
        assert found["eigenlearning_after/ratio"] == pytest.approx(1, abs=0.2)
        assert found["eigenlearning_after/reuse_gap"] > 1.2 * found["eigenlearning_after/ratio"]


def test_eigenlearning_needs_labels_and_squared_error(trained):
    with pytest.raises(UnavailableError, match="test labels"):
        EigenlearningTheory()(dataclasses.replace(trained, labelled=False))
    with pytest.raises(UnavailableError, match=r"trainer\.loss=logistic"):
        EigenlearningTheory()(dataclasses.replace(trained, settings={"loss": "logistic"}))
    with pytest.raises(ValueError, match="fresh"):
        EigenlearningTheory(fresh=0)
