"""Kernel logistic flow: a kernel trained by cross-entropy, as the network was, and to the same cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.chebyshev import Flow, integrate
from bench.gram import Base, Gram, as_float64
from bench.losses import loss_of


class LogisticPredictor:
    """Gradient flow ``df/dt = -K g / n`` on the mean cross-entropy, ``g`` its slope, with a kernel that stays as it is.

    So Geiger, Spigler, Jacot and Wyart (2020, "Disentangling feature and lazy training in deep neural networks") train
    a frozen kernel: with the network's own loss, to the network's own end.

    Args:
        k_train: [n, n], one kernel for all outputs, or [n, n, c, c]; as for ``KernelPredictor``.
        cross_entropy: the train cross-entropy at which the flow ends: the network's.
        base: "zero" or "init".
        loss: "logistic", of labels +1 and -1, or "softmax"; None: logistic for one output, softmax for several.

    Raises:
        ValueError: another base or loss, an end that is not positive, or a matrix that is no kernel.
    """

    def __init__(
        self,
        k_train: Any,
        cross_entropy: float,
        base: str = "zero",
        loss: str | None = None,
    ) -> None:
        if not 0 < cross_entropy < math.inf:
            raise ValueError(f"cross_entropy must be a positive number, not {cross_entropy}.")
        self.base = Base(base)
        self.gram = Gram(k_train)
        self.end = cross_entropy
        self.loss = loss
        self._weights: Tensor | None = None
        self._time = math.nan

    def fit(self, y: Any, f_0: Any = None) -> LogisticPredictor:
        """Train on labels y [n, c]: +1 and -1 for "logistic", the class of the largest column for "softmax".

        Raises:
            ValueError: labels of another kind; the cross-entropy at the start is below the end already; or the flow
                cannot reach it: the kernel does not tell the classes apart that far.
        """
        flow = _LogisticFlow(self.gram, y, self.base.of(f_0, self.gram, "fit"), self.loss)
        reached = float(flow.loss(flow.begin))
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


def logistic_course(
    kernel: Any, y: Any, steps: Any, at: Sequence[int], loss: str | None = None, momenta: Any = None, f_0: Any = None
) -> Tensor:
    """The outputs along gradient descent on a cross-entropy in a kernel that stays as it is.

    Arguments and result as for ``bench.predict.course``; ``loss`` as for ``LogisticPredictor``.
    """
    rows = as_float64(kernel)
    gram = Gram(rows[: rows.shape[1]])
    start = Base("zero" if f_0 is None else "init").of(f_0, gram, "logistic_course")
    flow = _LogisticFlow(gram, y, None if start is None else start[: gram.n], loss)
    etas = as_float64(steps).tolist()
    shares = [0.0] * len(etas) if momenta is None else as_float64(momenta).tolist()
    weights = reached = flow.start
    taken, wanted = {0: weights}, set(at)
    for count, (eta, share) in enumerate(zip(etas, shares, strict=True), 1):
        before, reached = reached, weights + eta * flow.slope(flow.outputs(weights))
        weights = reached + share * (reached - before)
        if count in wanted:
            taken[count] = weights
    outputs = torch.stack([gram.predict(rows, taken[count]) for count in at])
    return outputs if start is None else outputs + start


class _LogisticFlow(Flow):
    """``dw/dt = -g(b + K w) / n`` for the flat weights w; its Jacobian ``-H K / n`` has real eigenvalues below zero."""

    def __init__(self, gram: Gram, y: Any, begin: Tensor | None, loss: str | None) -> None:
        self.gram, self.y = gram, gram.targets(y)
        name = loss or ("logistic" if self.y.shape[1] == 1 else "softmax")
        if name not in ("logistic", "softmax"):
            raise ValueError(f"loss must be logistic or softmax, not {name!r}.")
        self._loss = loss_of(name)
        self._loss.check(self.y)
        self.begin = torch.zeros_like(self.y) if begin is None else begin
        self.start = gram.flat(torch.zeros_like(self.y))
        self.lambda_max = float(torch.linalg.matrix_norm(gram.matrix, math.inf))  # a bound of it

    def outputs(self, weights: Tensor) -> Tensor:
        return self.begin + (self.gram.matrix @ weights).reshape(self.y.shape)

    def slope(self, outputs: Tensor) -> Tensor:
        return self.gram.flat(-self._loss.gradient(outputs[None], self.y[None])[0] / self.gram.n)

    def loss(self, outputs: Tensor) -> Tensor:
        return self._loss.value(outputs[None], self.y[None])[0]

    def stiffness(self, outputs: Tensor) -> float:
        """A bound of the fastest rate: the largest curvature of one sample's loss (Gershgorin) times lambda_max / n."""
        root = self._loss.root(outputs[None])[0]
        curvature = (root @ root.mT).abs().sum(-1).max()
        return float(curvature) * self.lambda_max / self.gram.n
