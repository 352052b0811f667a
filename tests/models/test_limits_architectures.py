"""Some hundred architectures against independent float64 recursions; a sample of them against finite networks.

The references share nothing with the package but the parameters they read: kernels between all pixels of all inputs in
full matrices, layers of positions read off torch (image_reference), arc cosines in 40 digits, and for activations
without one of two closed forms a nested quadrature in Cartesian coordinates (limit_references.nested_dual).
"""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from image_reference import ByQuadrature, reference
from limit_references import arc_sine, recursion
from torch import nn

from bench.posterior import nngp_posterior, ntk_ensemble
from bench.predict import JITTER
from models.activations import ACTIVATIONS, Erf, Hermite, Power, RectifiedPower
from models.layers import Conv2d, Linear
from models.limits import check_rule, elementwise_function, infinite_width
from models.mlp import mlp
from models.resnet import ResidualBlock, resnet

CLOSED = 1e-10
QUADRATURE = 1e-6
STDS = (1.3, 0.2, 0.8, 0.5)  # of hidden weights and biases, and of the read-out's


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def vectors(n: int, d: int = 5) -> torch.Tensor:
    """Rows of unequal norms, from half to twice the usual."""
    return torch.randn(n, d, dtype=torch.float64) * torch.linspace(0.5, 2, n, dtype=torch.float64)[:, None]


def images(n: int, *shape: int) -> torch.Tensor:
    return vectors(n, math.prod(shape)).reshape(n, *shape)


def _relu_in_digits(kxx, kxy, kyy):
    """Cho & Saul 2009 on matrices of 40 digits."""

    def entry(k, p, q):
        norms = mpmath.sqrt(p * q)
        theta = mpmath.mpf(0) if abs(k - norms) < norms * mpmath.mpf(10) ** -35 else mpmath.acos(k / norms)
        left = mpmath.pi - theta
        return norms * (mpmath.sin(theta) + left * mpmath.cos(theta)) / (2 * mpmath.pi), left / (2 * mpmath.pi)

    p, q = np.broadcast_to(kxx[:, None], kxy.shape), np.broadcast_to(kyy[None], kxy.shape)
    return np.frompyfunc(entry, 3, 2)(kxy, p, q)


# --- depth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(21))
def test_relu_of_every_depth(depth) -> None:
    x1, x2 = vectors(3), vectors(4)
    x2[0] = 1.5 * x1[1]  # near a correlation of 1
    net = mlp(5, 4, depth, 1, "relu", w_std=1.3, b_std=0.2, readout_w_std=0.8, readout_b_std=0.5)
    with mpmath.workdps(40):
        digits = [np.vectorize(mpmath.mpf, otypes=[object])(x.numpy()) for x in (x1, x2)]
        w, b, v, a = (mpmath.mpf(s) ** 2 for s in STDS)
        stds = (w, b, v, a) if depth else (v, a, 0, 0)
        expected = recursion(_relu_in_digits, *digits, depth, *stds)
    for found, exact in zip(infinite_width(net)(x1, x2)[:2], expected, strict=True):
        np.testing.assert_allclose(found.numpy(), exact.astype(float), rtol=CLOSED)
    assert infinite_width(net)(x1, x2).error == 0.0


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 10, 20])
def test_erf_of_any_depth(depth) -> None:
    x1, x2 = vectors(3), vectors(4)
    net = mlp(5, 4, depth, 1, "erf", w_std=1.3, b_std=0.2, readout_w_std=0.8, readout_b_std=0.5)
    stds = tuple(s**2 for s in STDS) if depth else (STDS[2] ** 2, STDS[3] ** 2, 0.0, 0.0)
    expected = recursion(arc_sine, x1.numpy(), x2.numpy(), depth, *stds)
    for found, exact in zip(infinite_width(net)(x1, x2)[:2], expected, strict=True):
        np.testing.assert_allclose(found.numpy(), exact, rtol=CLOSED)


# --- activations ---------------------------------------------------------------------------------------------------


def snake(z: torch.Tensor) -> torch.Tensor:
    return z + torch.sin(2 * z) ** 2 / 2


elementwise_function(snake)


class Function(nn.Module):
    """An activation written as a function in `forward`."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


PHI = {name: (make, (0.0,)) for name, make in ACTIVATIONS.items()} | {
    "leaky relu of another slope": (lambda: nn.LeakyReLU(0.3), (0.0,)),
    "tanh gelu": (lambda: nn.GELU("tanh"), ()),
    "cube": (lambda: Power(3), ()),
    "rectified square": (lambda: RectifiedPower(2), (0.0,)),
    "rectified cube": (lambda: RectifiedPower(3), (0.0,)),
    "second Hermite": (lambda: Hermite(2), ()),
    "third Hermite": (lambda: Hermite(3), ()),
    "hard tanh": (nn.Hardtanh, (-1.0, 1.0)),
    "relu6": (nn.ReLU6, (0.0, 6.0)),
    "hard sigmoid": (nn.Hardsigmoid, (-3.0, 3.0)),
    "hard swish": (nn.Hardswish, (-3.0, 3.0)),
    "soft shrink": (nn.Softshrink, (-0.5, 0.5)),
    "log sigmoid": (nn.LogSigmoid, ()),
    "scaled and shifted erf": (lambda: Function(lambda z: 0.7 * torch.erf(1.3 * z) - 0.2), ()),
    "a function of one's own": (lambda: Function(snake), ()),
    "a small graph": (lambda: Function(lambda z: torch.sigmoid(z) * z + 0.1 * z**2), ()),
}
# In closed form here, so that 1e-10 must hold.
EXACT = {
    *(
        "relu",
        "leaky_relu",
        "gelu",
        "erf",
        "sin",
        "cos",
        "abs",
        "square",
        "sign",
        "step",
        "exp",
        "gaussian",
        "identity",
    ),
    *("leaky relu of another slope", "cube", "rectified square", "rectified cube", "second Hermite", "third Hermite"),
}
FAST = EXACT | {"tanh", "elu", "hard tanh"}


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PHI])
def test_every_activation(name) -> None:
    make, kinks = PHI[name]
    x1, x2 = vectors(2), vectors(2)
    layers = [Linear(5, 3, 1.2, 0.3), Linear(3, 3, 0.9, 0.2), Linear(3, 1, 0.8, 0.5)]
    if name == "exp":  # of exp of exp nothing has a second moment
        layers = [Linear(5, 3, 0.5, 0.2), layers[2]]
    net = nn.Sequential(*[part for layer in layers for part in (layer, make())][:-1])
    marked = nn.Sequential(*[part for layer in layers for part in (layer, ByQuadrature(make(), kinks))][:-1])
    limit = infinite_width(net)(x1, x2)
    # The recursion's own error: near a diagonal entry 1e-13, and the derivative of a jump is autograd's.
    tolerance = CLOSED if name in EXACT else QUADRATURE
    assert limit.error == 0.0 if name in EXACT else 0 < limit.error < QUADRATURE
    for found, expected in zip(limit[:2], reference(marked, x1, x2), strict=True):
        assert np.abs(found.numpy() - expected).max() < tolerance * np.abs(expected).max()


# --- images ----------------------------------------------------------------------------------------------------------


def conv(c_in: int, c_out: int = 4, size: int = 3, padding: int | str = 1, mode: str = "zeros", **more) -> Conv2d:
    return Conv2d(c_in, c_out, size, padding=padding, padding_mode=mode, w_std=1.3, b_std=0.3, **more)


def theirs(c_in: int, mode: str) -> nn.Conv2d:
    return nn.Conv2d(c_in, 4, 3, padding=1, padding_mode=mode)


def ended(*layers: nn.Module, by: str, shape: tuple[int, ...]) -> nn.Sequential:
    pool = [nn.AdaptiveAvgPool2d(1)] if by == "pool" else []
    body = nn.Sequential(*layers, *pool, nn.Flatten())
    with torch.no_grad():
        width = body.double()(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    return nn.Sequential(*layers, *pool, nn.Flatten(), Linear(width, 1, 0.8, 0.5))


def myrtle(phi: type[nn.Module]) -> list[nn.Module]:
    return [conv(2), phi(), conv(4), phi(), nn.AvgPool2d(2), conv(4), phi(), nn.AvgPool2d(2), conv(4), phi()]


IMAGES = {
    "zeros": lambda phi: [conv(2), phi(), conv(4), phi()],
    "valid": lambda phi: [conv(2, padding=0), phi(), conv(4, size=2, padding="valid"), phi()],
    "circular": lambda phi: [conv(2, mode="circular"), phi(), conv(4, mode="circular"), phi()],
    "reflect": lambda phi: [theirs(2, "reflect"), phi(), theirs(4, "reflect"), phi()],
    "replicate": lambda phi: [theirs(2, "replicate"), phi(), theirs(4, "replicate"), phi()],
    "even window": lambda phi: [conv(2, size=2, padding="same"), phi(), conv(4, size=4, padding="same"), phi()],
    "stride": lambda phi: [conv(2, stride=2), phi(), conv(4), phi()],
    "dilation": lambda phi: [conv(2, padding=2, dilation=2), phi(), conv(4), phi()],
    "depth 4": lambda phi: [conv(2), phi(), conv(4), phi(), conv(4), phi(), conv(4), phi()],
    "pool between": lambda phi: [conv(2), phi(), nn.AvgPool2d(2), conv(4), phi()],
    "myrtle": myrtle,
    "normalised": lambda phi: [conv(2), nn.GroupNorm(1, 4), phi(), conv(4), nn.GroupNorm(1, 4), phi()],
    "standard": lambda phi: [nn.Conv2d(2, 4, 3, padding=1), phi(), nn.Conv2d(4, 4, 3, padding=1), phi()],
    "mixed": lambda phi: [conv(2), phi(), conv(4), Erf(), conv(4), nn.ReLU()],
}


@pytest.mark.parametrize("by", ["flatten", "pool"])
@pytest.mark.parametrize(
    ("name", "phi"),
    # What a trained gain does to an activation the reference knows for ReLU only.
    [(name, phi) for name in IMAGES for phi in (nn.ReLU, Erf) if name != "normalised" or phi is nn.ReLU],
)
def test_images(name, phi, by) -> None:
    shape = (2, 4, 4)
    net = ended(*IMAGES[name](phi), by=by, shape=shape)
    x1, x2 = images(2, *shape), images(2, *shape)
    for found, expected in zip(infinite_width(net)(x1, x2)[:2], reference(net, x1, x2), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=CLOSED)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["flatten", "pool"])
@pytest.mark.parametrize("name", ["zeros", "pool between"])
@pytest.mark.parametrize("phi", ["tanh", "silu", "elu", "gelu"])
def test_images_of_other_activations(phi, name, by) -> None:
    shape = (2, 4, 2)
    x1, x2 = images(1, *shape), images(1, *shape)
    marked = ended(*IMAGES[name](lambda: ByQuadrature(ACTIVATIONS[phi]())), by=by, shape=shape)
    net = nn.Sequential(*(layer.phi if isinstance(layer, ByQuadrature) else layer for layer in marked))
    limit = infinite_width(net)(x1, x2)
    assert limit.error < QUADRATURE
    for found, expected in zip(limit[:2], reference(marked, x1, x2), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=CLOSED if phi == "gelu" else QUADRATURE)


# --- residual, normalised, mixed, standard ---------------------------------------------------------------------------


def standard(*widths: int, phi: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return [part for layer in layers for part in (layer, phi())][:-1]


def normed(w: int, phi: type[nn.Module]) -> list[nn.Module]:
    return [nn.LayerNorm(w, eps=0.1), phi()]


VECTORS = {
    "standard, no hidden layer": lambda: standard(5, 1),
    "standard, 1": lambda: standard(5, 7, 1),
    "standard, 3": lambda: standard(5, 7, 6, 8, 1),
    "standard, erf": lambda: standard(5, 7, 6, 1, phi=Erf),
    "our standard": lambda: list(mlp(5, 7, 3, 1, "relu", parameterization="standard", w_std=1.2, b_std=0.4)),
    "no bias": lambda: list(mlp(5, 7, 3, 1, "relu", b_std=None)),
    "normalised": lambda: [Linear(5, 6, 1.2, 0.3), *normed(6, nn.ReLU), Linear(6, 1, 0.8, 0.5)],
    "normalised, 3": lambda: [
        *(Linear(5, 6, 1.2, 0.3), *normed(6, nn.ReLU), Linear(6, 6, 1.2), *normed(6, nn.ReLU)),
        *(Linear(6, 6, 1.1, 0.2), *normed(6, nn.ReLU), Linear(6, 1, 0.8, 0.5)),
    ],
    "mixed": lambda: [
        *(Linear(5, 6, 1.2, 0.3), nn.ReLU(), Linear(6, 6, 1.2), Erf(), Linear(6, 6, 1.1, 0.2), nn.ReLU()),
        *(nn.Linear(6, 6), Erf(), Linear(6, 1, 0.8, 0.5)),
    ],
    "mixed, by quadrature": lambda: [
        *(Linear(5, 6, 1.2, 0.3), ByQuadrature(nn.Tanh()), Linear(6, 6, 1.2), nn.ReLU(), Linear(6, 6, 1.1, 0.2)),
        *(ByQuadrature(nn.ELU()), Linear(6, 6), ByQuadrature(nn.Softplus()), Linear(6, 1, 0.8, 0.5)),
    ],
}
RESIDUAL = {
    "residual": lambda: resnet(2, 4, 2, 1, "relu", branch_scale=0.7, b_std=0.2),
    "residual, two stages": lambda: resnet(2, 4, 1, 1, "relu", stages=2, b_std=0.2),
    "residual, normalised": lambda: resnet(2, 4, 1, 1, "relu", norm="layer", b_std=0.2),
    "residual, normalised, two stages": lambda: resnet(2, 4, 1, 1, "relu", norm="layer", stages=2, branch_scale=0.5),
    "residual, erf": lambda: resnet(2, 4, 2, 1, Erf(), branch_scale=0.7, b_std=0.2),
    "residual, standard": lambda: resnet(2, 4, 2, 1, "relu", parameterization="standard", b_std=0.2),
    "residual, flattened": lambda: nn.Sequential(*list(resnet(2, 4, 1, 1))[:-3], nn.Flatten(), Linear(64, 1)),
}


def unmarked(net: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(layer.phi if isinstance(layer, ByQuadrature) else layer for layer in net))


@pytest.mark.parametrize("name", [*VECTORS, *RESIDUAL])
def test_other_architectures(name) -> None:
    net = nn.Sequential(*VECTORS[name]()) if name in VECTORS else RESIDUAL[name]()
    x1, x2 = (vectors(n) if name in VECTORS else images(n, 2, 4, 4) for n in (2, 2))
    tolerance = QUADRATURE if "quadrature" in name else CLOSED
    for found, expected in zip(infinite_width(unmarked(net))(x1, x2)[:2], reference(net, x1, x2), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance)


# --- posteriors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "images", "images, erf", "standard"])
def test_posterior_mean_and_covariance(name) -> None:
    """Everything again from the reference kernels, by numpy: Lee et al. 2018 eq. 8; Lee et al. 2019 eqs. 14 and 15."""
    relu = name in ("images", "standard")
    if "images" in name:
        net = ended(*myrtle(nn.ReLU if relu else Erf), by="pool", shape=(2, 4, 4))
        x, z = images(5, 2, 4, 4), images(2, 2, 4, 4)
    else:
        net = nn.Sequential(*standard(5, 7, 6, 1)) if relu else mlp(5, 4, 3, 1, "erf", b_std=0.2)
        x, z = vectors(6), vectors(3)
    n = len(x)
    y = torch.randn(n, 2, dtype=torch.float64)
    K, T = (joint[: n + len(z), n + len(z) :] for joint in _joint(net, torch.cat([x, z])))
    limit = infinite_width(net)
    kernels = limit(x), limit(z, x), limit(z)
    noise, time = 0.1, 3.0
    ridge = noise + JITTER * np.diag(K[:n, :n]).mean()
    gained = K[n:, :n] @ np.linalg.inv(K[:n, :n] + ridge * np.eye(n))
    bayes = nngp_posterior(*kernels, y, noise=noise)
    np.testing.assert_allclose(bayes.mean.numpy(), gained @ y.numpy(), rtol=0, atol=1e-8)
    np.testing.assert_allclose(bayes.covariance.numpy(), K[n:, n:] - gained @ K[:n, n:], rtol=0, atol=1e-8)
    values, basis = np.linalg.eigh(T[:n, :n])
    for t in (time, None):
        jitter = values + JITTER * np.diag(T[:n, :n]).mean()
        moved = values / jitter if t is None else -np.expm1(-values * t / n)
        A = T[n:, :n] @ (basis * (moved / values)) @ basis.T
        flow = ntk_ensemble(*kernels, y, t)
        covariance = K[n:, n:] - A @ K[:n, n:] - K[n:, :n] @ A.T + A @ K[:n, :n] @ A.T
        # Where inputs agree the reference's arc cosine is off by sqrt(2 roundings of 1e-19) in each of up to 5 layers.
        off = (2e-9 if relu else 1e-12) * values[-1] / values[0]
        np.testing.assert_allclose(flow.mean.numpy(), A @ y.numpy(), rtol=0, atol=off)
        np.testing.assert_allclose(flow.covariance.numpy(), covariance, rtol=0, atol=off)


def _joint(net: nn.Sequential, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Reference kernels of inputs with themselves, in the layout of x with x."""
    return tuple(np.block([[t, t], [t, t]]) for t in reference(net, x, x))  # type: ignore[return-value]


# --- finite networks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "space", "activation"),
    [
        *((lambda width, name=name: PHI[name][0](), (), False) for name in ("silu", "tanh", "abs", "softplus", "step")),
        (lambda width: conv(width, width, mode="circular"), (4, 4), True),
        (lambda width: conv(width, width, padding=0), (4, 4), True),
        (lambda width: nn.Sequential(*(conv(width, width), nn.ReLU(), nn.AvgPool2d(2), nn.GELU())[:3]), (4, 4), True),
        (lambda width: ResidualBlock(width, "relu", "none", 1, 0.7, "ntk", 1.3, 0.2), (4, 4), False),
        (lambda width: ResidualBlock(width, "relu", "layer", 2, 0.7, "ntk", 1.3, 0.2), (4, 4), False),
        (lambda width: nn.Sequential(nn.LayerNorm(width), nn.Tanh()), (), False),
        (lambda width: nn.Sequential(nn.ReLU(), Linear(width, width, 1.2, 0.3), nn.Tanh()), (), False),
    ],
)
def test_a_sample_against_finite_networks(make, space, activation) -> None:
    check_rule(make, space, width=64, draws=100, activation=activation)
