"""Centring and scaling: the norms that each choice promises."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from tasks.inputs import prepare


def table(n: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=rng) * torch.tensor([1.0, 2.0, 3.0, 40.0, 5.0]) + 7


def images(n: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 4, 2, generator=rng) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1


def test_standardised_has_unit_mean_square_and_one_scale() -> None:
    train, test = prepare("toy", table(50), table(30, 1), "standardised")
    torch.testing.assert_close(train.mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    assert float(train.square().sum(1).mean()) == pytest.approx(5, rel=1e-5)  # |x|^2 = d on average
    spread = table(50).double().std(0)
    torch.testing.assert_close(train.double().std(0) / train.double().std(0)[0], spread / spread[0], rtol=1e-5, atol=0)
    mean, scale = table(50).mean(0), (table(50) - table(50).mean(0)).square().mean().sqrt()
    torch.testing.assert_close(test, (table(30, 1) - mean) / scale)  # the training rows' statistics


def test_standardised_images_have_one_mean_a_channel() -> None:
    train, test = prepare("toy", images(50), images(30, 1), "standardised")
    raw, mean = images(50), [float(images(50)[:, c].mean()) for c in range(3)]
    assert float(train.square().flatten(1).sum(1).mean()) == pytest.approx(24, rel=1e-5)
    scale = math.sqrt(sum(float((raw[:, c] - mean[c]).square().sum()) for c in range(3)) / raw.numel())
    for c in range(3):
        assert float(train[:, c].mean()) == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(test[:, c], (images(30, 1)[:, c] - mean[c]) / scale)


@pytest.mark.parametrize("make", [table, images])
def test_sphere_puts_every_row_at_the_root_of_d(make: type) -> None:
    train, test = prepare("toy", make(50), make(30, 1), "sphere")
    d = train[0].numel()
    for x in (train, test):
        torch.testing.assert_close(x.flatten(1).norm(dim=1), torch.full((len(x),), math.sqrt(d)))
    standardised = prepare("toy", make(50), make(30, 1), "standardised")[1].flatten(1)
    torch.testing.assert_close(torch.cosine_similarity(test.flatten(1), standardised), torch.ones(30))


def test_raw_is_untouched() -> None:
    train, test = prepare("toy", table(50), table(30, 1), "raw", centre=torch.ones(5), own_units=True)
    assert torch.equal(train, table(50))
    assert torch.equal(test, table(30, 1))


def test_unit_warns_and_is_the_sphere_of_radius_one() -> None:
    with pytest.warns(UserWarning, match=r"^Inputs 'unit' of task 'toy' have norm 1, not sqrt\(d\): .* dominates\.$"):
        train, _ = prepare("toy", table(50), table(30, 1), "unit")
    torch.testing.assert_close(train * math.sqrt(5), prepare("toy", table(50), table(30, 1), "sphere")[0])


def test_centre_replaces_the_training_mean() -> None:
    train, _ = prepare("toy", table(50), table(30, 1), "sphere", centre=torch.full((5,), 7.0))
    torch.testing.assert_close(train, math.sqrt(5) * torch.nn.functional.normalize(table(50) - 7))


def test_own_units_make_every_feature_count_the_same() -> None:
    a, _ = prepare("toy", table(50), table(30, 1), "standardised", own_units=True)
    torch.testing.assert_close(a.square().mean(0), torch.ones(5))
    unit = torch.tensor([1e3, 1.0, 1e-3, 1.0, 1.0])
    for inputs in ("standardised", "sphere"):
        one = prepare("toy", table(50), table(30, 1), inputs, own_units=True)
        other = prepare("toy", table(50).double() * unit, table(30, 1).double() * unit, inputs, own_units=True)
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_refuses() -> None:
    def refused(sentence: str, train: Tensor, inputs: str, own_units: bool = False) -> None:
        with pytest.raises(ValueError, match="^" + re.escape(sentence)):
            prepare("toy", train, table(30, 1), inputs, own_units=own_units)

    refused(
        "inputs of task 'toy' must be one of standardised, sphere, raw, unit, got 'whitened'.", table(9), "whitened"
    )
    flat = table(9)
    flat[:, 3] = 2
    refused(
        "inputs 'sphere' of task 'toy' cannot scale feature 3, which is constant over the 9 t", flat, "sphere", True
    )
    refused("inputs 'standardised' of task 'toy' cannot scale the 4 training rows", torch.ones(4, 5), "standardised")
    pair = torch.stack([-torch.ones(5), torch.zeros(5), torch.ones(5)])
    refused("Row 1 of x_train of task 'toy' is the mean itself and has no direction: take inputs 's", pair, "sphere")
