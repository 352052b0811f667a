"""The conformance test: right rules pass, each kind of wrong one is found."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.layers import Conv2d, Linear
from models.limits import Kernels, check_rule, rule


class Blend(nn.Module):
    """The docstring's example."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share, self.weight = share, nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        turned = x @ self.weight.T / len(self.weight) ** 0.5
        return self.share * turned + (1 - self.share) * x


def kept(module: Blend) -> float:
    return module.share**2 + (1 - module.share) ** 2


class Blended(Blend):
    """Its own type for each wrong rule."""

    def forward(self, x: Tensor) -> Tensor:
        return Blend.forward(self, x)


@rule(Blend)
def blend(module: Blend, k: Kernels) -> Kernels:
    return replace(k, nngp=kept(module) * k.nngp, ntk=kept(module) * k.ntk + module.share**2 * k.nngp)


def test_the_example_of_the_docstring() -> None:
    found = check_rule(lambda width: Blend(width, 0.3))
    assert found.nngp < 5
    assert found.ntk < 5
    assert found.error < 0.1


@pytest.mark.parametrize(
    ("wrong", "which"),
    [
        (lambda m, k: replace(k, nngp=(kept(m) + 0.1) * k.nngp, ntk=kept(m) * k.ntk + m.share**2 * k.nngp), "NNGP"),
        (lambda m, k: replace(k, nngp=kept(m) * k.nngp, ntk=kept(m) * k.ntk), "NTK"),
    ],
)
def test_wrong_rules_are_found(wrong, which) -> None:
    rule(Blended)(wrong)
    with pytest.raises(AssertionError, match=f"The rule's {which} is .* standard errors from finite networks"):
        check_rule(lambda width: Blended(width, 0.5))


@pytest.mark.parametrize(
    ("make", "space", "activation"),
    [
        (lambda width: nn.ReLU(), (), False),
        (lambda width: nn.LayerNorm(width), (), False),
        (lambda width: Linear(width, width, 1.2, 0.3), (), True),
        (lambda width: Conv2d(width, width, 3, 2, 1, "circular", w_std=1.2, b_std=0.3), (4, 4), True),
        (lambda width: nn.Sequential(nn.GroupNorm(1, width), nn.ReLU(), nn.AvgPool2d(2)), (4, 4), False),
        (lambda width: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (3, 3), False),
    ],
)
def test_our_own_rules(make, space, activation) -> None:
    check_rule(make, space, width=32, draws=100, activation=activation)


def test_bad_numbers_and_layers() -> None:
    with pytest.raises(ValueError, match="draws must be an integer of at least 8, not 3"):
        check_rule(lambda width: nn.ReLU(), draws=3)
    with pytest.raises(ValueError, match="make must not use layers in standard parameterization"):
        check_rule(lambda width: nn.Linear(width, width), draws=8)
    with pytest.raises(AssertionError, match="The check says nothing"):
        check_rule(lambda width: nn.ReLU(), width=8, draws=8)
