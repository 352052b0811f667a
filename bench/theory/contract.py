"""Sums over modes of batched weights and powers, without forming the product where the batches are independent."""

from __future__ import annotations

import string

import torch
from torch import Tensor


def mode_sum(weights: Tensor, multiplicities: Tensor | None = None) -> Tensor:
    """sum_i m_i weights_i over the last axis; None: each m_i is 1. (torch sums pairwise: rounding stays at 1e-15.)"""
    return (weights if multiplicities is None else weights * multiplicities).sum(-1)


def contract(weights: Tensor, powers: Tensor) -> Tensor:
    """sum_i weights[..., i] powers[..., i], the leading axes broadcast; a matrix product where they only fan out.

    [n, 1, modes] with [targets, modes] costs n x targets dot products, and no [n, targets, modes] is stored.
    """
    batch = torch.broadcast_shapes(weights.shape[:-1], powers.shape[:-1])
    names = string.ascii_lowercase[: len(batch)]
    operands, terms = [], []
    for tensor in (weights, powers):
        lead = tensor.shape[:-1]
        kept = [name for name, size in zip(names[len(batch) - len(lead) :], lead, strict=True) if size != 1]
        operands.append(tensor.reshape([size for size in lead if size != 1] + [tensor.shape[-1]]))
        terms.append("".join(kept) + "Z")
    present = "".join(name for name in names if name in terms[0] + terms[1])
    return torch.einsum(f"{terms[0]},{terms[1]}->{present}", *operands).reshape(batch)


def ratio(numerator: Tensor, denominator: Tensor, otherwise: float | Tensor) -> Tensor:
    """numerator / denominator, and `otherwise` where the denominator is 0, with gradients that stay finite."""
    zero = denominator == 0
    return torch.where(zero, otherwise, numerator / torch.where(zero, 1.0, denominator))
