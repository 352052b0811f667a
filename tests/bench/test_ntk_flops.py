"""FLOPs, which unlike times are the same on every machine, against the least that the method can do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.ntk import empirical_ntk, explain, passes
from models.cnn import cnn
from models.mlp import mlp
from tests.counted_flops import counted_flops


def flops(net: nn.Module, x: Tensor, **options: Any) -> float:
    """Float64: there a per-sample gradient of a convolution is a matrix product, which is counted rightly."""
    return counted_flops(lambda: empirical_ntk(net.double(), x.double(), **options))


def strips(n: int, rows: int) -> float:
    """Pairs of samples in strips of the symmetric kernel, from the diagonal on."""
    return sum(min(rows, n - top) * (n - top) for top in range(0, n, rows))


def test_mlp():
    n, sizes = 512, ((40, 96), (96, 96), (96, 1))
    forward = sum(a * b for a, b in sizes)
    backward = forward - 40 * 96  # not to the inputs
    grams = sum(a + b for a, b in sizes)
    least = 2 * n * (forward + backward) + 2 * strips(n, 128) * grams
    counted = flops(mlp(40, 96, 2, 1, b_std=0.1), torch.randn(n, 40))
    assert 0.99 * least <= counted < 1.02 * least  # and the probe of three samples
    # The symmetric kernel costs little more than half of the other.
    assert flops(mlp(40, 96, 2, 1), torch.randn(n, 40), x2=torch.randn(n, 40).double()) > 1.5 * counted


def test_mlp_of_ten_outputs():
    n, c, sizes = 128, 10, ((40, 96), (96, 96), (96, 10))
    forward = sum(a * b for a, b in sizes)
    pairs = strips(n, 13)  # 128 rows of all outputs
    grams = sum(a + c**2 * b for a, b in sizes)
    least = 2 * n * (forward + c * (forward - 40 * 96)) + 2 * pairs * grams
    counted = flops(mlp(40, 96, 2, c), torch.randn(n, 40))
    assert 0.99 * least <= counted < 1.03 * least


def test_cnn():
    n, size, layers = 150, 10, ((3, 20), (20, 20))
    maps = sum(9 * a * b for a, b in layers)
    passes = size**2 * (maps + 9 * 20 * 20) + 2 * 20
    # The first layer's inputs are few: all its gradients at once. 20 biases a layer, and the read-out's two factors.
    gradients = size**2 * maps
    pairs = strips(n, 75)
    least = 2 * n * (passes + gradients) + 2 * pairs * (maps + 2 * 20 + 20 + 1)
    counted = flops(cnn(3, 20, 2, 1, readout="gap", b_std=0.1), torch.randn(n, 3, size, size))
    assert 0.99 * least <= counted < 1.05 * least


def test_outputs_share_the_last_convolution():
    n, c, size, width = 50, 10, 10, 20  # 3.7 MB of gradients: one pass
    first, last = 27 * width, 9 * width**2
    passes = size**2 * first + (1 + c) * (size**2 * last + c * width)  # back to the first layer's outputs
    gradients = size**2 * (c * first + last)
    pairs = strips(n, 13)
    # Weights and biases of the convolutions, of the second each with its read-out; the read-out's two factors.
    grams = c**2 * (first + width) + last + width + 2 * c**2 * width + width + c**3
    least = 2 * n * (passes + gradients) + 2 * pairs * grams
    counted = flops(cnn(3, width, 2, c, readout="gap", b_std=0.1), torch.randn(n, 3, size, size))
    assert 0.99 * least <= counted < 1.05 * least


def test_passes_for_the_sake_of_memory_are_few():
    """The layers' gradients, 11 MB in two halves, take a second forward pass; the backward passes share the way."""
    torch.manual_seed(0)
    n, c = 24, 10
    net, x = cnn(3, 40, 3, c, readout="gap"), torch.randn(n, 3, 12, 12)
    split = flops(net, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "SMALL", math.inf)
        together = flops(net, x)
    forward = 2 * n * 144 * 9 * (3 * 40 + 2 * 40 * 40)
    assert split - together == pytest.approx(forward, rel=0.01)
    assert split < 1.1 * together


@pytest.mark.parametrize("positions", [1, 2, 30])
def test_the_plan_foresees_what_is_counted(positions):
    net = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 24), nn.Flatten(), nn.Linear(24 * positions, 2))
    x = torch.randn(60, positions, 24)
    planned = explain(net, x, x[:30]).flops
    counted = flops(net, x, x2=x[:30].double())
    # The plan takes a backward pass to cost what a forward pass does, though none goes to the inputs, and counts
    # element-wise passes, which the counter does not.
    assert 0.5 * planned < counted < 1.3 * planned


def test_columns_that_are_the_first_rows_pass_once():
    """The kernel between all points and those trained on: forward and backward for the rows alone."""
    n, few, sizes = 300, 100, ((40, 96), (96, 1))
    forward = sum(a * b for a, b in sizes)
    x = torch.randn(n, 40)
    # a forward pass, a backward pass that does not reach the inputs, and the products of factors
    least = 2 * n * (forward + forward - 40 * 96) + 2 * n * few * sum(a + b for a, b in sizes)
    other = flops(mlp(40, 96, 1, 1, b_std=0.1), x, x2=torch.randn(few, 40).double())
    counted = flops(mlp(40, 96, 1, 1, b_std=0.1), x, x2=x[:few].double())
    assert 0.99 * least <= counted < 1.02 * least  # and the probe of three samples
    assert other - counted >= 2 * few * (forward + forward - 40 * 96)
