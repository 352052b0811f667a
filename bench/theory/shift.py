"""Risk under a distribution shift, from the first two moments of the learned coefficients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.theory import inputs
from bench.theory.contract import contract, ratio
from bench.theory.eigenlearning import Eigenlearning, product


def shifted_mse(trained: Eigenlearning, coefficients: Any, moments: Any) -> Tensor:
    """Test MSE where inputs come from another distribution than the training set, noise on labels included, [...].

    E = sum_ij O_ij (1 - L_i) (1 - L_j) v_i v_j + (test_mse / n) sum_i O_ii L_i^2 + sigma^2, by E v_hat_i = L_i v_i
    and Cov[v_hat_i, v_hat_j] = d_ij L_i^2 test_mse / n (cf. Canatar, Bordelon, Pehlevan 2021). O is the identity where
    nothing shifts.

    Args:
        trained: without multiplicities, for the power v^2 of these coefficients.
        coefficients: [..., modes], v itself, with signs.
        moments: [modes, modes], O_ij, the mean of phi_i phi_j under the test distribution.

    Raises:
        ValueError: a level spectrum, moments of another shape or not symmetric, or coefficients of another target.
    """
    if trained.multiplicities is not None:
        raise ValueError("The shifted risk needs each mode by itself: give the spectrum without multiplicities.")
    lam = trained.eigenvalues
    v = inputs.per_mode("coefficients", inputs.float64("coefficients", coefficients, lam.device), lam)
    o = inputs.float64("moments", moments, lam.device)
    modes = lam.shape[-1]
    if o.shape != (modes, modes) or not torch.allclose(o, o.T, rtol=1e-8, atol=1e-12):
        raise ValueError(f"moments must be a symmetric [modes, modes] with modes = {modes}, here {list(o.shape)}.")
    inputs.broadcast(coefficients=v.shape[:-1], target_power=trained.target_power.shape[:-1])
    scale = float(trained.target_power.detach().amax())
    if not torch.allclose(v**2, trained.target_power, rtol=1e-6, atol=1e-12 * scale):
        raise ValueError("coefficients must be those whose squares are the target_power of the prediction.")
    left = trained.unlearned * v
    bias = ((left @ o) * left).sum(-1) + trained.missing
    spread = product(ratio(trained.test_mse, trained.n, 0.0), contract(trained.learnabilities**2, o.diagonal()))
    return bias + spread + trained.noise
