"""Images as whitened patches, and the kernel and network of one convolution on them: each patch is seen alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, unfold

from models.layers import Conv2d, Linear
from models.limits import infinite_width

REGULARISATION = 0.1  # of the whitening, in units of the mean variance
W_STD, B_STD = 2**0.5, 0.1


def whitened_patches(x: Tensor, n_train: int, size: int = 5, stride: int = 2, padding: int = 2) -> Tensor:
    """Patches of size x size pixels, [n, channels * size^2, height, width] on their grid, each of norm sqrt(entries).

    Each patch loses its mean; then all are whitened (ZCA) by the covariance of those of the first ``n_train`` images,
    and scaled to one norm (Coates and Ng 2012).
    """
    columns = unfold(x, size, stride=stride, padding=padding)
    entries, side = columns.shape[1], round(columns.shape[2] ** 0.5)
    if side * side != columns.shape[2]:
        raise ValueError(f"x must hold square images, not {[*x.shape[2:]]}.")
    columns = columns - columns.mean(1, keepdim=True)
    seen = columns[:n_train].transpose(1, 2).reshape(-1, entries)
    values, vectors = torch.linalg.eigh(torch.cov(seen.T))
    root = vectors / (values.clamp_min(0) + REGULARISATION * values.mean()).sqrt() @ vectors.T
    white = torch.einsum("npl,pq->nql", columns - seen.mean(0)[:, None], root)
    # A patch of one colour (a border of black) has no direction, and stays near zero.
    white = white * (entries**0.5 / (white.norm(dim=1, keepdim=True) + 1e-3))
    return white.reshape(len(x), entries, side, side)


def permuted_pixels(x: Tensor, seed: int) -> Tensor:
    """One permutation of the positions for all images and channels: what a fully connected network cannot see."""
    order = torch.randperm(x.shape[2] * x.shape[3], generator=torch.Generator().manual_seed(seed))
    return x.flatten(2)[:, :, order].reshape(x.shape)


def scrambled_pixels(x: Tensor, seed: int) -> Tensor:
    """Another permutation of the positions for each image, the same for its channels: what is left is which colours
    an image has, and no place of any."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(x), x.shape[2] * x.shape[3], generator=generator).argsort(1)
    return x.flatten(2).gather(2, order[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)


def patch_net(entries: int, width: int, side: int, cells: int, activation: nn.Module | None = None) -> nn.Sequential:
    """One hidden unit a filter and patch, averaged over each of cells x cells parts of the image, and a read-out."""
    return nn.Sequential(
        Conv2d(entries, width, 1, w_std=W_STD, b_std=B_STD),
        nn.ReLU() if activation is None else activation,
        nn.AvgPool2d(side // cells),
        nn.Flatten(1),
        Linear(width * cells**2, 1),
    )


def patch_ntk(patches: Tensor, cells: int) -> Tensor:
    """Exact NTK [n, n] of ``patch_net`` with ReLU at infinite width, in the dtype of the patches [n, p, side, side].

    It is the mean over the cells, and over pairs of patches within a cell, of the kernel of a fully connected network
    on patches. The limit of ``patch_net`` itself carries the covariance of every pair of positions, in all cells.
    """
    n, entries, side = patches.shape[:3]
    limit = infinite_width(nn.Sequential(Linear(entries, 1, W_STD, B_STD), nn.ReLU(), Linear(1, 1)))
    total = patches.new_zeros(n, n)
    step = side // cells
    for row in range(0, side, step):
        for column in range(0, side, step):
            cell = patches[:, :, row : row + step, column : column + step]
            rows = cell.permute(0, 2, 3, 1).reshape(-1, entries)
            total += limit(rows).ntk.reshape(n, step**2, n, step**2).mean((1, 3))
    return total / cells**2


def random_filter_kernel(patches: Tensor, cells: int, filters: int, seed: int) -> Tensor:
    """Gram matrix [n, n] of the pooled features of ``patch_net`` with random filters: its conjugate kernel."""
    generator = torch.Generator().manual_seed(seed)
    entries, side = patches.shape[1:3]
    weights = torch.randn(filters, entries, generator=generator).to(patches) * (W_STD / entries**0.5)
    biases = B_STD * torch.randn(filters, generator=generator).to(patches)
    hidden = torch.einsum("npij,fp->nfij", patches, weights) + biases[:, None, None]
    features = avg_pool2d(torch.relu(hidden), side // cells).flatten(1).double()
    return features @ features.T / features.shape[1]
