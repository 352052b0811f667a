"""The degree against known ones; the exact kernel machine of weight decay at a stationary point found in float64."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.func import functional_call

from bench.homogeneity import InhomogeneousError, degree, exact_ridge
from bench.ntk import empirical_ntk
from bench.predict import KernelPredictor
from models.activations import RectifiedPower
from models.cnn import cnn
from models.layers import Linear
from models.mlp import mlp


def squared(width: int = 16) -> nn.Module:
    """relu^2: once differentiable, so that the machine is exact; degree 3."""
    return nn.Sequential(Linear(6, width, 2**0.5, 0.4), RectifiedPower(2), Linear(width, 1))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (mlp(6, 8, 0, 1), 1),
        (mlp(6, 8, 1, 1, b_std=0.4), 2),
        (mlp(6, 8, 3, 2, b_std=None), 4),
        (mlp(6, 8, 2, 1, activation="identity", b_std=None), 3),
        (mlp(6, 8, 1, 1, activation="square"), 3),
        (squared(), 3),
        (mlp(6, 8, 1, 1, parameterization="standard", w_std=1.0, b_std=0.1), 2),
    ],
)
def test_degrees(net, expected):
    assert degree(net, torch.randn(5, 6)) == pytest.approx(expected, abs=1e-8)


def test_degree_of_a_convolutional_network():
    assert degree(cnn(1, 4, 2, 3, b_std=None, image_size=6), torch.randn(2, 1, 6, 6)) == pytest.approx(3, abs=1e-8)


@pytest.mark.parametrize(
    "net",
    [
        mlp(6, 8, 1, 1, b_std=0.4, readout_b_std=0.3),
        mlp(6, 8, 2, 1, b_std=0.4),
        mlp(6, 8, 1, 1, activation="erf"),
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)),
    ],
)
def test_networks_without_a_degree_are_refused(net):
    with pytest.raises(InhomogeneousError, match="readout_b_std=null"):
        degree(net, torch.randn(5, 6))


def test_a_bias_that_is_zero_for_now_counts():
    net = mlp(6, 8, 1, 1, readout_b_std=0.3)
    with torch.no_grad():
        net[-1].bias.zero_()
    with pytest.raises(InhomogeneousError):
        degree(net, torch.randn(5, 6))


def stationary(gamma: float, centred: bool, decay: float = 1e-3, n: int = 24):
    """A stationary point of ``1/(2n) sum (f - y)^2 + decay/2 |theta|^2`` by scipy's L-BFGS, then Newton."""
    torch.manual_seed(0)
    net = squared().double()
    x, x_test = torch.randn(n, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    y = (x[:, :1] * x[:, 1:2]).sign()
    start = {name: p.detach() for name, p in net.named_parameters()}
    shapes = {name: value.shape for name, value in start.items()}
    z_0 = functional_call(net, start, (torch.cat([x, x_test]),)) if centred else torch.zeros(n + 40, 1).double()

    def unflatten(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def objective(flat):
        f = (functional_call(net, unflatten(flat), (x,)) - z_0[:n]) / gamma
        return (f - y).square().sum() / (2 * n) + decay / 2 * flat.square().sum()

    def with_gradient(flat):
        theta = torch.tensor(flat, requires_grad=True)
        value = objective(theta)
        return value.item(), torch.autograd.grad(value, theta)[0].numpy()

    flat = torch.cat([value.flatten() for value in start.values()]).numpy()
    found = scipy.optimize.minimize(
        with_gradient,
        flat,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxcor": 30, "ftol": 0, "gtol": 1e-9},
    )
    theta = torch.tensor(found.x)
    for _ in range(3):
        gradient = torch.tensor(with_gradient(theta.numpy())[1])
        theta = (
            theta
            - torch.linalg.lstsq(torch.autograd.functional.hessian(objective, theta), gradient[:, None]).solution[:, 0]
        )
    assert np.abs(with_gradient(theta.numpy())[1]).max() < 1e-12
    trained = copy.deepcopy(net)
    trained.load_state_dict(unflatten(theta))
    everything = torch.cat([x, x_test])
    f_T = ((trained(everything) - z_0) / gamma).detach()[n:]
    kernel = empirical_ntk(trained, everything, x, outputs=0)
    return trained, x, y, kernel, -z_0.detach() / gamma, f_T


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_the_network_is_exactly_its_after_kernels_machine(gamma, centred):
    net, x, y, kernel, base, f_T = stationary(gamma, centred)
    n = len(y)
    L = degree(net, x)

    def error(ridge, base=base, kernel=kernel):
        predictor = KernelPredictor(kernel[:n], ridge, base="init").fit(y, base[:n])
        return float((predictor.predict(kernel[n:], base[n:]) - f_T).square().sum() / f_T.square().sum())

    # The gradient is at most 1e-12 and the ridge some 0.1 of a kernel of order 1: errors of 1e-11, squared; the jitter
    # of 1e-10 beside the ridge is of that order, too.
    assert error(exact_ridge(L, gamma, n, 1e-3)) < 1e-16
    # The controls: a degree too low, no ridge, the other base, another kernel.
    assert error(exact_ridge(L - 1, gamma, n, 1e-3)) > 1e-6
    assert error(0.0) > 1e-6
    assert error(exact_ridge(L, gamma, n, 1e-3), kernel=1.01 * kernel) > 1e-9
    if gamma != 1:
        assert error(exact_ridge(L, 1.0, n, 1e-3)) > 1e-6
    if centred:
        assert error(exact_ridge(L, gamma, n, 1e-3), base=torch.zeros_like(base)) > 1e-6
