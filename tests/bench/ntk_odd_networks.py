"""Networks that use their parameters in ways that no layer does, or that autograd treats specially."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Causal(nn.Module):
    """A decoder on tokens: masked attention by the fused function, tied embedding and read-out, the last token's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.places = nn.Embedding(5, 8)
        self.norm, self.last_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norm(h)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + self.out(mixed)
        return F.linear(self.last_norm(h)[:, -1], self.words.weight)


class Masked(nn.Module):
    """torch's encoder with a causal mask, its layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 9, dropout=0.0, batch_first=True, activation="gelu")
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.read = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.layer(x, src_mask=self.mask), src_mask=self.mask)
        return self.read(h[:, -1])


class Twice(nn.Module):
    """One convolution, one normalisation and one linear layer, each at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3)
        self.norm, self.read = nn.GroupNorm(2, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        for _ in range(2):
            h = h + torch.tanh(self.norm(self.conv(h)))
        return self.read(torch.tanh(self.read(h.mean((2, 3)))))


class Functional(nn.Module):
    """Weights of layers that are never called, in every way that a call can take them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(5, 5) for _ in range(4))
        self.gain, self.one = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.randn(1, 1))
        self.table, self.unused = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(weight=self.a.weight, input=x, bias=self.a.bias))
        h = torch.tanh(torch.addmm(self.b.bias, h, self.b.weight.t()) + torch.add(h, self.table[1], alpha=0.5))
        h = torch.mul(input=h, other=self.gain) * self.one - self.c.bias
        h = torch.tensordot(h, self.c.weight, dims=([1], [1])) + self.table[0] / 3
        h += self.table[2]
        return torch.cat([h, h * 2], 1) @ torch.cat([self.d.weight, self.d.weight.T], 0)


class Mixed(nn.Module):
    """Control flow that depends on nothing but the module, and on each sample by ``where``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.read, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i == 2:
                continue
            x = layer(x) if i % 2 else torch.sin(layer(x))
        return torch.where(x.sum(1, keepdim=True) > 0, self.read(x), self.other(x))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(lambda h: torch.tanh(self.first(h)), x, use_reentrant=False))


class Frozen(nn.Module):
    """Detached here, in use there; a normalisation of which only the bias is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.read = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.norm.weight.requires_grad_(False)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x)))
        return self.read(h) + F.linear(h.detach(), self.read.weight) + F.linear(h, self.read.weight.detach())


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.read = nn.EmbeddingBag(11, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(torch.tanh(self.bag(tokens)))


def odd_networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """As ``ntk_networks.networks``."""
    torch.manual_seed(1)
    flat = nn.Flatten()
    made: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "token causal": (Causal(), (5,)),
        "token bag of means": (Bag(), (5,)),
        "masked": (Masked().eval(), (4, 6)),
        "twice": (Twice(), (2, 5, 5)),
        "functional": (Functional(), (5,)),
        "mixed": (Mixed(), (5,)),
        "checkpointed": (Checkpointed(), (5,)),
        "frozen": (Frozen().eval(), (5,)),
        "attention of torch": (Attention().eval(), (4, 6)),
        "three dimensions": (
            nn.Sequential(nn.Conv3d(1, 2, 2, stride=2), nn.Tanh(), flat, nn.Linear(16, 2)),
            (1, 4, 4, 4),
        ),
        "instance norm": (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), flat, nn.Linear(36, 2)),
            (2, 5, 5),
        ),
        "shuffled": (
            nn.Sequential(
                nn.Conv2d(2, 8, 3, padding=1, padding_mode="reflect"), nn.PixelShuffle(2), nn.Tanh(),
                nn.Upsample(scale_factor=0.5, mode="bilinear"), nn.Conv2d(2, 3, 3, 2, bias=False), flat,
                nn.Linear(12, 2),
            ),
            (2, 5, 5),
        ),
        "spectral norm": (
            nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)).eval(),
            (5,),
        ),
        "orthogonal": (
            nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 2)),
            (5,),
        ),
        "gated recurrent": (Gated(), (4, 3)),
        "bilinear": (TwoSides(), (6,)),
    }  # fmt: skip
    return {name: (net.double(), shape) for name, (net, shape) in made.items()}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.read = nn.MultiheadAttention(6, 3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.attention(x, x.flip(1), x, need_weights=False)[0].mean(1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.read = nn.GRU(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.gru(x)[0].mean(1))


class TwoSides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.read = nn.Bilinear(3, 3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.both(x[:, :3], x[:, 3:])))
