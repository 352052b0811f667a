"""Posteriors against conditional Gaussians, exact linear models and trained finite networks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from bench.posterior import nngp_posterior, ntk_ensemble
from models.layers import Linear
from models.limits import infinite_width
from models.mlp import mlp


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def data(n=8, m=5, d=4, c=2):
    x = torch.randn(n + m, d, dtype=torch.float64)
    y = torch.stack([torch.sin(x[:n, 0]), x[:n, 1] ** 2], 1)[:, :c]
    return x[:n], x[n:], y


def kernels(net, x, x_test):
    limit = infinite_width(net)
    return limit(x), limit(x_test, x), limit(x_test)


def test_nngp_posterior_is_a_conditional_gaussian():
    x, x_test, y = data()
    train, cross, test = kernels(mlp(4, 8, 2, 2, "erf", b_std=0.3), x, x_test)
    posterior = nngp_posterior(train, cross, test, y, noise=0.1)
    joint = np.block(
        [[train.nngp.numpy() + 0.1 * np.eye(8), cross.nngp.numpy().T], [cross.nngp.numpy(), test.nngp.numpy()]]
    )
    precision = np.linalg.inv(joint)[8:, 8:]  # of the test points given the rest
    covariance = np.linalg.inv(precision)
    mean = -covariance @ np.linalg.inv(joint)[8:, :8] @ y.numpy()
    np.testing.assert_allclose(posterior.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(posterior.covariance.numpy(), covariance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("time", [None, 0.0, 3.0, 200.0])
def test_an_ensemble_of_linear_models_exactly(time):
    # f(x) = w x / sqrt(d) with w ~ N(0, 1), d > n: everything is linear in w_0.
    x, x_test, y = data(n=6, d=9)
    train, cross, test = kernels(mlp(9, 1, 0, 2), x, x_test)
    ensemble = ntk_ensemble(train, cross, test, y, time)
    features, features_test = x.numpy() / 3, x_test.numpy() / 3
    values, vectors = np.linalg.eigh(features.T @ features)
    decay = np.zeros(9) if time is None else np.exp(-values * time / 6)
    keep = vectors @ np.diag(np.where(values > 1e-12, decay, 1.0)) @ vectors.T
    left = features_test @ keep  # what is left of w_0
    solution = np.linalg.pinv(features) @ y.numpy()
    np.testing.assert_allclose(ensemble.covariance.numpy(), left @ left.T, atol=1e-8)
    np.testing.assert_allclose(ensemble.mean.numpy(), features_test @ (solution - keep @ solution), atol=1e-8)


def test_an_ensemble_of_wide_networks():
    width, members, steps, rate = 512, 120, 60, 0.5
    x, x_test, y = data(n=5, m=4, c=1)
    net = mlp(4, width, 1, 1, "erf", b_std=0.3).double()
    ensemble = ntk_ensemble(*kernels(net, x, x_test), y, time=rate * steps)
    params = {name: torch.randn(members, *p.shape, dtype=p.dtype) for name, p in net.named_parameters()}

    def outputs(p, inputs):
        return functional_call(net, p, (inputs,))

    step = vmap(grad(lambda p: ((outputs(p, x) - y) ** 2).sum() / (2 * len(x))))
    for _ in range(steps):
        slopes = step(params)
        params = {name: p - rate * slopes[name] for name, p in params.items()}
    final = vmap(lambda p: outputs(p, x_test)[:, 0])(params)
    deviation = ensemble.covariance.diagonal().sqrt()
    # Members scatter by the predicted deviation; the bias of finite width and finite steps is a few per cent of it.
    assert ((final.mean(0) - ensemble.mean[:, 0]).abs() < (4.5 / math.sqrt(members) + 0.1) * deviation).all()
    # A variance of m Gaussian samples has the relative error sqrt(2 / m).
    ratio = final.var(0) / deviation**2
    assert ((ratio - 1).abs() < 4.5 * math.sqrt(2 / members) + 0.1).all()
    assert (deviation > 0.05).all()


def test_trained_to_the_end_the_training_points_are_known():
    x, _, y = data()
    limit = infinite_width(mlp(4, 8, 1, 2, "erf", b_std=0.3))(x)
    ensemble = ntk_ensemble(limit, limit, limit, y)
    torch.testing.assert_close(ensemble.mean, y, atol=1e-5, rtol=0)
    assert ensemble.covariance.abs().max() < 1e-5
    start = ntk_ensemble(limit, limit, limit, y, time=0.0)
    torch.testing.assert_close(start.covariance, limit.nngp)


def test_the_readout_alone_gives_the_nngp_posterior():
    # With only the read-out trained the NTK is the NNGP, and the ensemble samples the posterior.
    x, x_test, y = data()
    net = mlp(4, 8, 1, 2, "erf", b_std=0.3)
    layers = [layer for layer in net if isinstance(layer, Linear)]
    layers[0].requires_grad_(False)
    three = kernels(net, x, x_test)
    one, two = ntk_ensemble(*three, y), nngp_posterior(*three, y)
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.covariance, two.covariance, rtol=1e-4, atol=1e-6)


def test_what_has_another_covariance_is_refused():
    x, x_test, y = data()
    three = kernels(mlp(4, 8, 1, 2), x, x_test)
    for more in ({"gamma": 2.0}, {"centred": True}):
        with pytest.raises(ValueError, match="gamma must be 1 and centred False"):
            ntk_ensemble(*three, y, **more)
    with pytest.raises(ValueError, match="train, cross and test must be kernels"):
        nngp_posterior(three[0], SimpleNamespace(nngp=three[1].nngp.T, ntk=None), three[2], y)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        nngp_posterior(*three, y, noise=-1)
