"""Alignment against its formula by hand, its chance level against all permutations, C against a known spectrum."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from bench.compare import Alignment, UnavailableError
from bench.compare.alignment import (
    alignment,
    area,
    chance,
    cumulative_power,
    permutation_z,
    power_at,
    raw_alignment,
)
from bench.train import Trainer
from bench.trained import members, seed_of
from models.limits import infinite_width
from models.mlp import mlp
from tasks.hypercube import staircase


def kernel_and_labels(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    y[:classes] = torch.arange(classes)
    one_hot = torch.eye(classes, dtype=torch.float64)[y]
    return torch.exp(-torch.cdist(x, x)) + 0.5, one_hot if classes > 2 else 2.0 * y[:, None] - 1


def by_hand(K, Y):
    H = np.eye(len(K)) - 1 / len(K)
    K, T = H @ K @ H, H @ Y @ Y.T @ H
    return (K * T).sum() / np.sqrt((K**2).sum() * (T**2).sum())


@pytest.mark.parametrize("classes", [2, 3])
def test_alignment_is_its_formula(classes):
    K, y = kernel_and_labels(12, classes)
    assert alignment(K, y) == pytest.approx(by_hand(K.numpy(), y.numpy()), abs=1e-14)
    T = y.numpy() @ y.numpy().T
    raw = (K.numpy() * T).sum() / np.linalg.norm(K.numpy()) / np.linalg.norm(T)
    assert raw_alignment(K, y) == pytest.approx(raw, abs=1e-14)
    shifted = alignment(7 * K + 3, y + 5)  # centring: constants and scales do not matter
    assert shifted == pytest.approx(alignment(K, y), abs=1e-12)
    assert abs(raw_alignment(7 * K + 3, y + 5) - raw_alignment(K, y)) > 0.05


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("n", [5, 6, 7])
def test_chance_level_is_that_of_all_permutations(n, classes):
    K, y = kernel_and_labels(n, classes, seed=n)
    found = [by_hand(K.numpy(), y.numpy()[list(order)]) for order in itertools.permutations(range(n))]
    expected = chance(K, y)
    assert expected.mean == pytest.approx(np.mean(found), abs=1e-12)
    assert expected.deviation == pytest.approx(np.std(found), rel=1e-10)
    z = (by_hand(K.numpy(), y.numpy()) - np.mean(found)) / np.std(found)
    assert permutation_z(K, y) == pytest.approx(z, rel=1e-9)


def test_the_chance_level_of_one_output_is_wrong_for_classes():
    """The formula often quoted, tr K_c / ((n - 1) |K_c|), is that of a single output."""
    K, y = kernel_and_labels(60, 5)
    H = np.eye(60) - 1 / 60
    K_c = H @ K.numpy() @ H
    single = np.trace(K_c) / (59 * np.linalg.norm(K_c))
    generator = np.random.default_rng(0)
    found = [by_hand(K.numpy(), y.numpy()[generator.permutation(60)]) for _ in range(2000)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(chance(K, y).mean - np.mean(found)) < 4 * error
    assert abs(single - np.mean(found)) > 40 * error


def test_cumulative_power_of_a_known_spectrum():
    n = 8
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1), torch.randn(n, n - 1)], 1).double()).Q[:, 1:]
    K = (basis * torch.tensor([7.0, 6, 5, 4, 3, 2, 1])) @ basis.T + 2.0  # a constant, which centring takes away
    y = 3 * basis[:, :1] + 1 * basis[:, 4:5] + 0.7  # power 9 in the first mode, 1 in the fifth, and a mean
    power = cumulative_power(K, y)
    torch.testing.assert_close(power, torch.tensor([0.9, 0.9, 0.9, 0.9, 1, 1, 1, 1], dtype=torch.float64))
    assert power_at(power, 1 / 8) == pytest.approx(0.9)
    assert power_at(power, 0.5 / 8) == pytest.approx(0.45)
    assert power_at(power, 4.5 / 8) == pytest.approx(0.95)
    assert power_at(power, 1) == pytest.approx(1)
    # Trapezes: C from (0, 0) to (1/8, .9), level to 4/8, to 1 at 5/8.
    assert area(power) == pytest.approx((0.45 + 3 * 0.9 + 0.95 + 3) / 8)


def test_power_of_random_labels_grows_like_the_number_of_modes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, dtype=torch.float64, generator=generator)
    y = torch.randn(300, 20, dtype=torch.float64, generator=generator)
    power = cumulative_power(torch.exp(-torch.cdist(x, x)), y)
    # C(1/2) is the mean of 20 shares of 150 in 299 squares: standard deviation sqrt(1/2 / 299 / 20) = .009.
    assert abs(power_at(power, 0.5) - 0.5) < 4 * 0.009
    assert abs(area(power) - 0.5) < 0.03


def test_too_few_points_have_no_chance_level():
    with pytest.raises(ValueError, match="at least 4"):
        chance(torch.eye(3), torch.ones(3, 1))


def test_a_kernel_that_tells_no_points_apart_is_at_chance():
    """All permutations of the labels align alike with the unit matrix: the deviation is 0, or rounding."""
    for n in (8, 12, 13):
        y = torch.sign(torch.arange(n) - 2.5)
        assert abs(permutation_z(torch.eye(n), y)) < 1e-6  # rounding, 1e-16, over its root
        assert np.isnan(permutation_z(torch.eye(n), torch.ones(n)))


def test_shapes_and_shares_that_do_not_fit_are_refused():
    K, y = kernel_and_labels(12, 2)
    for measure in (alignment, raw_alignment, chance, permutation_z, cumulative_power):
        for wrong in ((K, y[:5]), (K[:, :5], y), (K, y[None])):
            with pytest.raises(ValueError, match=r"kernel must be \[n, n\] and y"):
                measure(*wrong)
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="rho must be a share"):
            power_at(cumulative_power(K, y), share)


@pytest.fixture(scope="module")
def trained():
    tasks = [staircase(d=8, n_train=24, n_test=40, seed=seed_of("data", i)) for i in range(2)]
    return Trainer(richness=1.0).fit(mlp(8, 64, 1, 1, b_std=0.4, readout_b_std=0.3), tasks, members(2, 2))


def test_the_comparison_is_on_test_points_with_each_kernel(trained):
    values = {score.name: score for score in Alignment(points=30)(trained)}
    found = {"initial": [], "after": [], "infinite_ntk": [], "after[1]": []}
    for i in range(4):
        task = trained.task(i)
        x, y = task.x_test[:30].double(), task.y_test[:30].double()
        for name, params in (("initial", trained.params_0), ("after", trained.params_T)):
            W, b, a = (params[key][i].double().numpy() for key in ("1.weight", "1.bias", "3.weight"))
            # Written out: z = a relu(sqrt 2 W x / sqrt d + .4 b) / sqrt m + .3 c.
            u = (2 / 8) ** 0.5 * x.numpy() @ W.T + 0.4 * b
            h, back = np.maximum(u, 0) / 8, (u > 0) * a / 8
            first = back @ back.T * (2 / 8 * x.numpy() @ x.numpy().T + 0.4**2)
            K = torch.from_numpy(first + h @ h.T + 0.3**2)
            found[name].append(by_hand(K.numpy(), y.numpy()))
            if name == "after":
                one = by_hand(first, y.numpy()) / chance(torch.from_numpy(first), y).mean
                found["after[1]"].append(one)
        found["infinite_ntk"].append(by_hand(infinite_width(trained.net)(x).ntk.numpy(), y.numpy()))
    for name in ("initial", "after", "infinite_ntk"):
        np.testing.assert_allclose(values[f"alignment/{name}"].per_member, found[name], rtol=1e-9)
        assert np.isfinite(values[f"alignment/{name}/z"].value)
    np.testing.assert_allclose(values["alignment/after[1]/over_chance"].per_member, found["after[1]"], rtol=1e-9)
    arrays = Alignment(points=30).arrays(trained)
    np.testing.assert_allclose(arrays["snapshot_alignment_held_out"][:, 0], found["initial"], rtol=1e-9)
    np.testing.assert_allclose(arrays["snapshot_alignment_held_out"][:, -1], found["after"], rtol=1e-9)


def test_training_on_random_labels_aligns_the_kernel_with_those_and_with_nothing_else():
    """Alignment on the training points rises for any labels; on held-out points it stays at its chance level."""
    generator = torch.Generator().manual_seed(0)
    tasks = []
    for i in range(6):
        task = staircase(d=8, n_train=40, n_test=150, seed=seed_of("data", i))
        shuffled = {key: getattr(task, key)[torch.randperm(len(getattr(task, key)), generator=generator)]
                    for key in ("y_train", "y_test")}  # fmt: skip
        tasks.append(dataclasses.replace(task, **shuffled))
    trained = Trainer(richness=3.0, tolerance=1e-2).fit(mlp(8, 128, 1, 1, b_std=0.4), tasks, members(6, 1))
    values = {score.name: score for score in Alignment()(trained)}
    before, after = (values[f"alignment/{kernel}/train_over_chance"].per_member for kernel in ("initial", "after"))
    assert all(b < a for b, a in zip(before, after, strict=True))
    z = values["alignment/after/z"]
    assert abs(z.value) < 4 / 6**0.5  # one permutation each: mean 0 and deviation 1, of six


def test_alignment_needs_test_labels(trained):
    with pytest.raises(UnavailableError, match="test labels"):
        Alignment()(dataclasses.replace(trained, labelled=False))
    with pytest.raises(ValueError, match=r"compare.alignment.points must be an integer of at least 4"):
        Alignment(points=3)
