"""Kernel logistic flow: a kernel trained by cross-entropy, as the network was, and to the same cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.chebyshev import Flow, integrate
from bench.gram import Base, Gram, as_float64


def classes(output: Tensor) -> Tensor:
    """The class that targets or outputs [n, c] name, [n]: the sign of a single column (0 or 1), else the largest."""
    return (output[:, 0] > 0).long() if output.shape[1] == 1 else output.argmax(1)


def cross_entropy(f: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of outputs f [..., n, c]: of the softmax, or of the one logit of the class 1 where c = 1.

    Args:
        labels: [n], the classes.
    """
    if f.shape[-1] == 1:
        return torch.nn.functional.softplus(f[..., 0] * (1 - 2 * labels.to(f))).mean(-1)
    chosen = f.gather(-1, labels[:, None].expand(*f.shape[:-1], 1))[..., 0]
    return (f.logsumexp(-1) - chosen).mean(-1)


def slope(f: Tensor, labels: Tensor) -> Tensor:
    """``n`` times the gradient of ``cross_entropy`` with respect to f [n, c]: what plays the residual's part."""
    if f.shape[1] == 1:
        sign = 1 - 2 * labels.to(f)[:, None]
        return sign * torch.sigmoid(f * sign)
    return torch.softmax(f, 1) - torch.nn.functional.one_hot(labels, f.shape[1]).to(f)


class LogisticPredictor:
    """Gradient flow ``df/dt = -K g / n`` on the mean cross-entropy, ``g`` its slope, with a kernel that stays as it is.

    So Geiger, Spigler, Jacot and Wyart (2020, "Disentangling feature and lazy training in deep neural networks") train
    a frozen kernel: with the network's own loss, to the network's own end.

    Args:
        k_train: [n, n], one kernel for all outputs, or [n, n, c, c]; as for ``KernelPredictor``.
        base: "zero" or "init".
        cross_entropy: the train cross-entropy at which the flow ends: the network's.
        steps: instead, gradient descent with exactly these steps.
        momenta: for steps, the share of the last move by which each goes on (Nesterov's momentum).

    Raises:
        ValueError: another base, not one of ``cross_entropy`` and ``steps``, an end that is not positive, or a matrix
            that is no kernel.
    """

    def __init__(
        self,
        k_train: Any,
        base: str = "zero",
        cross_entropy: float | None = None,
        steps: Sequence[float] | Tensor | None = None,
        momenta: Sequence[float] | Tensor | None = None,
    ) -> None:
        if (cross_entropy is None) == (steps is None):
            raise ValueError("Give cross_entropy, at which the flow ends, or steps: one of the two.")
        if cross_entropy is not None and not 0 < cross_entropy < math.inf:
            raise ValueError(f"cross_entropy must be a positive number, not {cross_entropy}.")
        if momenta is not None and (steps is None or len(momenta) != len(steps)):
            raise ValueError("momenta must be one number for each of steps.")
        self.base = Base(base)
        self.gram = Gram(k_train)
        self.end = cross_entropy
        self.steps = None if steps is None else as_float64(steps).tolist()
        self.momenta = [0.0] * len(self.steps or []) if momenta is None else as_float64(momenta).tolist()
        self._weights: Tensor | None = None
        self._time = math.nan

    def fit(self, y: Any, f_0: Any = None) -> LogisticPredictor:
        """Train on the classes that y [n, c] names: its sign where c = 1, its largest column otherwise.

        Raises:
            ValueError: the cross-entropy at the start is below the end already, or the flow cannot reach it: the kernel
                does not tell the classes apart that far.
        """
        start = self.base.of(f_0, self.gram, "fit")
        targets = self.gram.targets(y)
        labels = classes(targets)
        begin = torch.zeros_like(targets) if start is None else start
        flow = _LogisticFlow(self.gram, begin, labels)
        if self.steps is not None:
            self._weights, self._time = flow.descend(self.steps, self.momenta), math.fsum(self.steps)
            return self
        assert self.end is not None
        reached = float(cross_entropy(begin, labels))
        if reached < self.end:
            raise ValueError(
                f"The cross-entropy starts at {reached:.4g}, below the {self.end:.4g} at which it is to end."
            )
        self._weights, self._time = integrate(flow, self.end)
        return self

    @property
    def weights(self) -> Tensor:
        """The function's weights on the kernel's columns, [n, c] ([n c, 1] for a full multi-output kernel)."""
        if self._weights is None:
            raise ValueError("Call fit before predict.")
        return self._weights

    @property
    def time(self) -> float:
        """When the flow ended: comparable with the network's sum of steps."""
        return self._time

    def predict(self, k_test_train: Any, f_0: Any = None) -> Tensor:
        """Outputs (logits) [n_test, c]; arguments as for ``KernelPredictor``."""
        prediction = self.gram.predict(k_test_train, self.weights)
        initial = self.base.of(f_0, self.gram, "predict")
        return prediction if initial is None else prediction + initial


class _LogisticFlow(Flow):
    """``dw/dt = -g(b + K w) / n`` for the flat weights w; its Jacobian ``-H K / n`` has real eigenvalues below zero."""

    def __init__(self, gram: Gram, begin: Tensor, labels: Tensor) -> None:
        self.gram, self.begin, self.labels = gram, begin, labels
        self.start = gram.flat(torch.zeros_like(begin))
        self.lambda_max = float(torch.linalg.matrix_norm(gram.matrix, math.inf))  # a bound of it

    def outputs(self, weights: Tensor) -> Tensor:
        return self.begin + (self.gram.matrix @ weights).reshape(self.begin.shape)

    def slope(self, outputs: Tensor) -> Tensor:
        return self.gram.flat(-slope(outputs, self.labels) / self.gram.n)

    def loss(self, outputs: Tensor) -> Tensor:
        return cross_entropy(outputs, self.labels)

    def stiffness(self, outputs: Tensor) -> float:
        """A bound of the fastest rate: the largest curvature of one sample's loss times lambda_max / n."""
        if outputs.shape[1] == 1:
            p = torch.sigmoid(outputs)
            curvature = p * (1 - p)
        else:
            # Gershgorin's bound of diag(p) - p p': twice p (1 - p), the largest over classes.
            p = torch.softmax(outputs, 1)
            curvature = 2 * p * (1 - p)
        return float(curvature.max()) * self.lambda_max / self.gram.n

    def descend(self, steps: Sequence[float], momenta: Sequence[float]) -> Tensor:
        weights = reached = self.start
        for step, momentum in zip(steps, momenta, strict=True):
            before, reached = reached, weights + step * self.slope(self.outputs(weights))
            weights = reached + momentum * (reached - before)
        return weights
