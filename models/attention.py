"""Self-attention whose weights settle down as it gets wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.checks import check_count
from models.layers import Linear, Parameterization


class SelfAttention(nn.Module):
    """Attention with logits q . k / d instead of q . k / sqrt(d): output(concat over heads of softmax(q k' / d) v).

    x [n, positions, features] -> [n, positions, features]; d = features / heads. With `tied`, queries are the keys:
    their logits tend to the layer's covariances as d grows (Hron et al. 2020, section 3). With layers of their own
    they tend to 0, so that attention ends as an average over positions. In NTK parameterization the usual
    1 / sqrt(d) would keep the weights random at any width, which leaves no deterministic kernel.
    Raises ValueError with one sentence for sizes below 1, heads that do not divide the features, negative standard
    deviations or an unknown parameterization.
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        tied: bool = True,
        w_std: float = 1.0,
        b_std: float | None = None,
        parameterization: Parameterization = "ntk",
    ) -> None:
        super().__init__()
        check_count("features", features)
        check_count("heads", heads)
        if features % heads:
            raise ValueError(f"heads must divide the features, {features}, not {heads}.")
        self.features, self.heads, self.tied = features, heads, tied
        self.queries, self.values, self.output = (
            Linear(features, features, w_std, b_std, parameterization) for _ in range(3)
        )
        self.keys = None if tied else Linear(features, features, w_std, b_std, parameterization)

    def forward(self, x: Tensor) -> Tensor:
        queries, values = self._split(self.queries(x)), self._split(self.values(x))
        keys = queries if self.keys is None else self._split(self.keys(x))
        weights = torch.softmax(queries @ keys.mT / (self.features // self.heads), -1)
        return self.output((weights @ values).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[n, positions, features] -> [n, heads, positions, d]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"{self.features}, heads={self.heads}, tied={self.tied}"
