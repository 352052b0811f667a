"""Eigenlearning's studies of networks and of images on small inputs: networks trained one by one, kernels by loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from bench.ntk import empirical_ntk
from bench.studies.conservation import Conservation, conservation
from bench.studies.deep_bootstrap import DeepBootstrap, deep_bootstrap
from bench.studies.double_descent import DoubleDescent, double_descent
from bench.studies.hermite_images import HermiteImages, hermite_images
from bench.studies.image_pairs import ImagePairs, image_pairs, population_of
from bench.studies.kernel_flow import KernelFlow, kernel_flow
from bench.studies.named import named_task
from bench.studies.populations import corners, fit_networks, network, ntk, parities
from bench.studies.pure_modes import PureModes, pure_modes
from bench.studies.sparse_parity import SparseParity, sparse_parity
from bench.studies.width_dependence import WidthDependence, width_dependence
from bench.theory.trials import kernel_trials
from bench.train import Trainer
from bench.trained import Member, seed_of
from tasks.hypercube import parity
from tasks.images import cifar10, mnist
from tasks.task import Task

BATCH = 1e-3
"""Of networks trained alone and in a batch: float32 sums in another order, to train losses of 1e-3 to 1e-5."""


def alone(net, trainer, x, y, rows, init, place=0):
    """Outputs on all points, [M], of one network trained on one target [M] and one set, the ``place``-th of a study."""
    some = torch.as_tensor(rows)
    task = Task("one", x[some], y[some, None], x, y[:, None])
    trained = trainer.fit(net, [task] * (place + 1), [Member(place, init)])
    assert trained.status[0] == "done"
    return trained.f_T[0, len(some) :, 0].double().numpy()


def test_networks_of_a_population_are_those_trained_alone() -> None:
    x, basis = corners(3), parities(3)
    net, trainer = network(3, 16, 1), Trainer(step=1.0, tolerance=1e-4)
    drawn = torch.tensor([[0, 3, 5, 6], [1, 2, 4, 7]])
    outputs, losses = fit_networks(net, trainer, x, basis[:, 1:3], drawn, first_init=2, inits=2)
    assert outputs.shape == (2, 2, 2, 8)
    assert float(losses.max()) <= 1e-4
    y = basis[:, 2]
    some = drawn[0]
    tasks = [Task("one", x[some], y[some, None], x, y[:, None])]
    expected = trainer.fit(net, tasks, [Member(0, 5)]).f_T[0, 4:, 0]  # set 0: inits 2 * 2 and 2 * 2 + 1
    torch.testing.assert_close(outputs[0, 1, 1], expected.to(outputs), rtol=BATCH, atol=BATCH)
    stopped, _ = fit_networks(net, Trainer(max_steps=1, tolerance=1e-9), x, basis[:, 1:2], drawn)
    assert bool(stopped.isnan().all())


def test_a_budget_of_networks_is_the_sum_over_the_basis() -> None:
    settings = Conservation(size=3, n=4, width=16, scales=(2.0,), ridges=(0.0,), trials=2, tolerance=1e-4, seeds=(3,))
    a = conservation(settings).arrays
    x, basis = corners(3), parities(3)
    # The networks' set follows the kernels' draws in the stream: found again as the one that they fit.
    trainer = Trainer(1 / (2 * 16**0.5), tolerance=1e-4, max_steps=30_000, snapshots=2)
    rng = torch.Generator().manual_seed(seed_of("sets", 3))
    torch.randn(8, 8, generator=rng, dtype=torch.float64)
    for targets in (16, 16, 16):
        kernel_trials(torch.eye(8, dtype=torch.float64), torch.zeros(8, targets).double(), 4, trials=1, generator=rng)
    kernel_trials(torch.eye(8, dtype=torch.float64), torch.zeros(8, 1).double(), 4, trials=2, generator=rng)
    rows = torch.randperm(8, generator=rng)[:4]
    total = sum(
        float((alone(network(3, 16, 1), trainer, x, basis[:, k], rows, 3) * basis[:, k].numpy()).mean())
        for k in range(8)
    )
    assert a["network_total"][0, 0] == pytest.approx(total, abs=8 * BATCH)
    assert a["network_loss"][0, 0] <= 1e-4


def test_networks_and_kernel_have_the_same_training_sets() -> None:
    settings = PureModes(
        domain="cube", size=4, depth=1, levels=(1,), n=(6,), trials=3, networks=2, width=16, tolerance=1e-4, seeds=(1,)
    )
    a = pure_modes(settings).arrays
    x = corners(4)
    rng = torch.Generator().manual_seed(seed_of("sets", 1, 6))
    rows = torch.rand(3, 16, generator=rng, dtype=torch.float64).argsort(1)[:2, :6]
    y, kernel = x[:, 0], ntk(4, 1)(x).numpy()
    trainer = Trainer(accelerated=True, step=1.0, tolerance=1e-4)
    errors, same = [], []
    for place, r in enumerate(rows.numpy()):
        f = alone(network(4, 16, 1), trainer, x, y, r, 1, place)
        errors.append(((f - y.numpy()) ** 2).mean())
        g = kernel[:, r] @ np.linalg.solve(kernel[np.ix_(r, r)], y.numpy()[r])
        same.append(((g - y.numpy()) ** 2).mean())
    assert a["network_mse"][0, 0, 0] == pytest.approx(np.mean(errors), rel=10 * BATCH)
    assert a["kernel_same_mse"][0, 0, 0] == pytest.approx(np.mean(same), rel=1e-9)


def test_distances_to_the_kernel() -> None:
    settings = WidthDependence(d=3, widths=(16,), levels=(1, 2), n=(4,), inits=2, tolerance=1e-5, seeds=(6,))
    a = width_dependence(settings).arrays
    x = corners(3)
    rows = torch.randperm(8, generator=torch.Generator().manual_seed(seed_of("sets", 6, 4)))[:4].numpy()
    targets = np.stack([x[:, 0].numpy(), x[:, :2].prod(1).numpy()], 1)
    kernel = ntk(3, 1)(x).numpy()
    g = kernel[:, rows] @ np.linalg.solve(kernel[np.ix_(rows, rows)], targets[rows])
    trainer = Trainer(accelerated=True, step=1.0, tolerance=1e-5)
    f = np.array([
        [alone(network(3, 16, 1), trainer, x, torch.from_numpy(targets[:, c]), rows, init) for c in range(2)]
        for init in (12, 13)
    ]).transpose(0, 2, 1)  # fmt: skip
    assert a["distance"][0, 0, 0] == pytest.approx(((f - g) ** 2).mean(), rel=0.02)
    np.testing.assert_allclose(a["network_mse"][0, 0, :, 0], ((f - targets) ** 2).mean((0, 1)), rtol=10 * BATCH)
    np.testing.assert_allclose(a["kernel_mse"][0, 0, :, 0], ((g - targets) ** 2).mean(0), rtol=1e-9)
    np.testing.assert_allclose(a["kernel_learnability"][0, 0, :, 0], (g * targets).mean(0), rtol=1e-9)


def test_unfinished_networks_give_no_number_and_are_counted() -> None:
    settings = WidthDependence(d=3, widths=(8, 16), levels=(1, 2), n=(4,), inits=2, max_steps=1, seeds=(6, 7))
    record = width_dependence(settings)
    assert (record.status, record.reason) == ("unconverged", "16 of 16 networks did not reach tolerance.")
    assert np.isnan(record.arrays["network_mse"]).all()
    assert np.isfinite(record.arrays["kernel_mse"]).all()


def test_sparse_parities() -> None:
    settings = SparseParity(d=10, n=(20,), n_test=50, kernel_draws=3, width=16, tolerance=1e-2, seeds=(2,))
    a = sparse_parity(settings).arrays
    errors = []
    for draw in range(3):
        task = parity(d=10, k=2, n_train=20, n_test=50, seed=seed_of("draw", 2, draw))
        x, x_test = task.x_train.double(), task.x_test.double()
        f = ntk(10, 1)(x_test, x).numpy() @ np.linalg.inv(ntk(10, 1)(x).numpy()) @ task.y_train.double().numpy()
        errors.append(((f - task.y_test.numpy()) ** 2).mean())
    assert a["kernel"][0, 0] == pytest.approx(np.mean(errors), rel=1e-9)
    assert a["kernel_same"][0, 0] == pytest.approx(errors[0], rel=1e-9)
    task = parity(d=10, k=2, n_train=20, n_test=50, seed=seed_of("draw", 2, 0))
    trainer = Trainer(1 / (0.03 * 4), tolerance=1e-2, max_steps=20_000)
    trained = trainer.fit(network(10, 16, 1), [task], [Member(0, 2)])
    assert a["rich"][0, 0] == pytest.approx(float((trained.f_T[0, 20:] - task.y_test).square().mean()), rel=1e-6)


def test_the_flow_is_a_matrix_exponential() -> None:
    settings = KernelFlow(task="digits", n=12, n_test=30, width=32, tolerance=0.1, snapshots=4, seeds=(1,))
    a = kernel_flow(settings).arrays
    task = named_task("digits", 12, 30, seed_of("data", 1))
    x = torch.cat([task.x_train, task.x_test]).double().flatten(1)
    y, clean = task.y_train.double().numpy(), task.y_test.double().numpy()
    net = network(x.shape[1], 32, 1)
    made = Task("digits", x[:12], task.y_train.double(), x[12:], task.y_test.double())
    trained = Trainer(step=settings.step, tolerance=0.1, snapshots=4).fit(net, [made], [Member(0, 1)])
    params = {name: value[:1, 0].double() for name, value in trained.params.items()}
    own = empirical_ntk(net.double(), x, x[:12], outputs="trace", params=params)[0].numpy()
    limit = ntk(x.shape[1], 1)(x, x[:12]).numpy()
    for column, time in enumerate(a["times"][0]):
        for name, kernel, factor in (("initial", own, 1), ("twice", own, 2), ("infinite", limit, 1)):
            flown = np.eye(12) - expm(-kernel[:12] * time * factor / 12)
            f = kernel[12:] @ np.linalg.solve(kernel[:12], flown @ y)
            expected = ((f - clean) ** 2).sum() / (clean**2).sum()
            assert a[name][0, column] == pytest.approx(expected, rel=1e-4), name  # K_0 is kept in float32
    last = (trained.f_T[0, 12:].double().numpy() - clean) ** 2
    assert a["network"][0, -1] == pytest.approx(last.sum() / (clean**2).sum(), rel=1e-3)


def test_networks_whose_last_layer_trains_are_regressions_on_their_features() -> None:
    settings = DoubleDescent(n=6, k=(24,), modes=12, d=4, trials=2, networks=2, network_k=24, seeds=(0,))
    a = double_descent(settings).arrays
    # Trained to 1e-6 of the labels' power, they are the regression within its square root.
    assert a["network"][0, 0] == pytest.approx(a["network_same"][0, 0], rel=0.01)


@pytest.fixture
def images(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEBENCH_DATA", str(data_folder))


@pytest.mark.usefixtures("images")
def test_image_pairs_are_regressions_on_images() -> None:
    settings = ImagePairs(pairs=("cifar10:deer:horse",), population=60, n=(20,), ridges=(0.0, 2.0), trials=3,
                          networks=2, width=32, tolerance=1e-2, seeds=(7,))  # fmt: skip
    a = image_pairs(settings).arrays
    x, y = population_of("cifar10:deer:horse", 60, 7)
    assert x.shape == (60, 3 * 16 * 16)
    np.testing.assert_allclose(x.square().sum(1), 768, rtol=1e-5)
    kernel, labels = ntk(768, 1)(x).numpy(), y[:, 0].numpy()
    rng = torch.Generator().manual_seed(seed_of("sets", 7, 20))
    rows = torch.rand(3, 60, generator=rng, dtype=torch.float64).argsort(1)[:, :20].numpy()
    for place, ridge in enumerate(settings.ridges):
        errors, estimates = [], []
        for r in rows:
            rest = np.setdiff1d(np.arange(60), r)
            inverse = np.linalg.inv(kernel[np.ix_(r, r)] + ridge * np.eye(20))
            errors.append(((kernel[np.ix_(rest, r)] @ inverse @ labels[r] - labels[rest]) ** 2).mean())
            estimates.append(20 * ((inverse @ labels[r]) ** 2).sum() / np.trace(inverse) ** 2)
        assert a["measured"][0, 0, place, 0] == pytest.approx(np.mean(errors), rel=1e-8)
        assert a["gcv"][0, 0, place, 0] == pytest.approx(np.mean(estimates), rel=1e-8)
        if ridge == 0:
            assert a["same"][0, 0, 0] == pytest.approx(np.mean(errors[:2]), rel=1e-8)
    trainer = Trainer(accelerated=True, step=1.0, tolerance=1e-2)
    off = []
    for place, r in enumerate(rows[:2]):
        f = alone(network(768, 32, 1), trainer, x, y[:, 0], r, 7, place)
        rest = np.setdiff1d(np.arange(60), r)
        off.append(((f[rest] - labels[rest]) ** 2).mean())
    assert a["network"][0, 0, 0] == pytest.approx(np.mean(off), rel=10 * BATCH)


@pytest.mark.usefixtures("images")
def test_digits_of_the_bootstrap() -> None:
    settings = DeepBootstrap(modes=5, n=(2,), tau=(1.0,), gaussian_trials=1, population=80, image_n=(20,), trials=3,
                             image_tau=(5.0,), networks=1, network_n=(10,), shares=(0.1,), reference=40, width=16,
                             seeds=(2,))  # fmt: skip
    a = deep_bootstrap(settings).arrays
    task = mnist(classes=None, n_train=80, n_test=1, seed=seed_of("data", 2), size=14)
    x = task.x_train.double().flatten(1)
    y = np.where(task.y_train.argmax(1).numpy() < 5, 1.0, -1.0)
    kernel = ntk(196, 1)(x).numpy()
    rng = torch.Generator().manual_seed(seed_of("sets", 2, 20))
    errors = []
    for r in torch.rand(3, 80, generator=rng, dtype=torch.float64).argsort(1)[:, :20].numpy():
        rest = np.setdiff1d(np.arange(80), r)
        f = kernel[np.ix_(rest, r)] @ np.linalg.solve(kernel[np.ix_(r, r)] + 20 / 5 * np.eye(20), y[r])
        errors.append(((f - y[rest]) ** 2).mean())
    assert a["image_test"][0, 0, 0] == pytest.approx(np.mean(errors), rel=1e-9)
    # Networks to the tenth of the crossover time, off both training sets.
    lam = np.linalg.eigvalsh(kernel) / 80
    low, high = 1e-12, 1e6
    for _ in range(100):
        kappa = (low * high) ** 0.5
        low, high = (kappa, high) if (lam / (lam + kappa)).sum() > 10 else (low, kappa)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed_of("nested", 2)))
    trainer = Trainer(time=0.1 / kappa, tolerance=0.0, step=0.5, snapshots=2)
    error = []
    for count in (10, 40):
        f = alone(network(196, 16, 1), trainer, x, torch.from_numpy(y), order[:count], 2)
        error.append(((f - y)[order[40:]] ** 2).mean())
    assert a["ratio"][0, 0, 0] == pytest.approx(error[0] / error[1], rel=10 * BATCH)


@pytest.mark.usefixtures("images")
def test_hermite_sees_the_kernel_it_says() -> None:
    settings = HermiteImages(images=150, modes=20, degrees=4, sample=60, top=5, n=(30,), trials=2, seeds=(3,))
    a = hermite_images(settings).arrays
    task = cifar10(classes=None, n_train=150, n_test=1, seed=seed_of("data", 3), inputs="raw", size=8)
    pixels = task.x_train.double().flatten(1).numpy()
    pixels = pixels - pixels.mean(0)
    x = pixels / np.sqrt((pixels**2).sum(1).mean())
    y = np.where(np.isin(task.y_train.argmax(1).numpy(), (2, 3, 4, 5, 6, 7)), 1.0, -1.0)
    gram = np.exp(-((x[:, None] - x) ** 2).sum(-1) / (2 * 16))
    expected = np.linalg.eigvalsh(gram[:60, :60])[::-1][:5] / 60
    np.testing.assert_allclose(a["eigenvalues"][0], expected, rtol=1e-7)
    # Degree 0 of the ansatz is the kernel's mean over the sphere of the mean norm: nearly exp(-1 / s^2).
    assert a["eigenvalues_theory"][0, 0] == pytest.approx(np.exp(-1 / 16), rel=0.02)
    rng = torch.Generator().manual_seed(seed_of("sets", 3))
    errors = []
    for r in torch.rand(2, 150, generator=rng, dtype=torch.float64).argsort(1)[:, :30].numpy():
        rest = np.setdiff1d(np.arange(150), r)
        f = gram[np.ix_(rest, r)] @ np.linalg.solve(gram[np.ix_(r, r)] + 1e-3 * np.eye(30), y[r])
        errors.append(((f - y[rest]) ** 2).mean())
    assert a["measured"][0, 0] == pytest.approx(np.mean(errors), rel=1e-7)
