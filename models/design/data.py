"""A kernel for given data: non-negative Taylor coefficients of least leave-one-out error."""

from __future__ import annotations

import torch
from torch import Tensor

ORDER = 6  # higher orders make heavy-tailed activations
STEPS = 200
START_RIDGE = 1e-2  # relative to K(1) = 1
LEAST_RIDGE = 1e-6


def check_inputs(name: str, x: object) -> None:
    """ValueError unless x is a finite float tensor [n, ...], n at least 1."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        found = f"{x.dtype} {[*x.shape]}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a float tensor [n, ...] with n >= 1, not {found}.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, but holds NaN or infinity.")


def check_data(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs as [n, d] and targets as [n, c], float64; ValueError for anything else."""
    for name, t in (("X", x), ("y", y)):
        if not isinstance(t, Tensor) or not t.is_floating_point() or not bool(torch.isfinite(t).all()):
            raise ValueError(f"target (X, y): {name} must be a finite float tensor.")
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y) or len(x) < 3:
        raise ValueError(
            f"target (X, y): X must be [n, ...] and y [n] or [n, c], n >= 3, not {[*x.shape]}, {[*y.shape]}."
        )
    x, y = x.flatten(1).double(), y.reshape(len(y), -1).double()
    if not bool((y != 0).any()):
        raise ValueError("target (X, y): y is 0 everywhere: any kernel predicts it.")
    if bool((x.norm(dim=1) == 0).any()):
        raise ValueError("target (X, y): X holds an input of norm 0, which is on no sphere.")
    return x, y


def coefficients_for(x: Tensor, y: Tensor) -> list[float]:
    """a_0 .. a_6 >= 0, of sum 1, whose kernel ridge regression of y [n, c] on x [n, d] has least leave-one-out error.

    Kernels are of the cosines between inputs. Coefficients (through a softmax) and ridge are found together by L-BFGS
    on the log of the mean squared leave-one-out residual, (K + r)^-1 y / diag((K + r)^-1) (Allen 1974). n^3 work.
    """
    unit = x / x.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).clamp(-1, 1).detach()
    powers = torch.stack([cosines**k for k in range(ORDER + 1)])
    free = torch.zeros(ORDER + 2, dtype=torch.float64, device=x.device)
    free[-1] = torch.log(torch.tensor(START_RIDGE))
    free.requires_grad_()
    optimiser = torch.optim.LBFGS([free], max_iter=STEPS, line_search_fn="strong_wolfe")
    eye = torch.eye(len(x), dtype=torch.float64, device=x.device)

    def loss() -> Tensor:
        optimiser.zero_grad()
        kernel = torch.tensordot(torch.softmax(free[:-1], 0), powers, 1)
        inverse = torch.linalg.inv(kernel + (free[-1].exp() + LEAST_RIDGE) * eye)
        residual = inverse @ y / inverse.diagonal()[:, None]
        value = torch.log(residual.square().mean() + torch.finfo(torch.float64).tiny)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return torch.softmax(free.detach()[:-1], 0).tolist()
