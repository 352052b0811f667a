"""Networks of every kind that the empirical NTK must get right, and the kernel by brute force."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cnn import cnn
from models.layers import Conv2d, Linear
from models.mlp import mlp


def brute_force(net: nn.Module, x1: Tensor, x2: Tensor) -> Tensor:
    """[n1, n2, c, c] from one autograd call a sample and output; the network sees one sample at a time."""
    parameters = [p for p in net.parameters() if p.requires_grad]

    def rows(x: Tensor) -> Tensor:
        return torch.stack([torch.stack([gradient(output) for output in net(x[i : i + 1])[0]]) for i in range(len(x))])

    def gradient(output: Tensor) -> Tensor:
        found = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for g, p in zip(found, parameters, strict=True)
            ]
        )

    return torch.einsum("ikp,jlp->ijkl", rows(x1), rows(x2))


class Residual(nn.Module):
    """A pre-activation block with a strided shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(x))
        return self.shortcut(h) + self.second(torch.tanh(self.first(h)))


def resnet() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1), Residual(17, 17, 1), nn.MaxPool2d(2), Residual(17, 20, 2), nn.GroupNorm(4, 20),
        nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 2),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


class Channelwise(nn.Module):
    """Two convolutions whose channels meet only in the read-out, beside and behind one whose channels meet before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.beside, self.norm = nn.Conv2d(5, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.read = nn.Linear(6, 4)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = F.gelu(self.norm(self.second(h)) + self.beside(h))
        h = F.max_pool2d(F.avg_pool2d(h * torch.sigmoid(h), 2), 2)
        return self.read(h.mean((-2, -1)).flatten(1))


class Tokens(nn.Module):
    """A small transformer on token numbers: embeddings, learnt positions, a class token, attention, MLP."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=3)
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 11 if tied else 3, bias=not tied)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens) + self.positions
        h = torch.cat([self.first.expand(len(h), 1, 8), h], 1)
        return self.head(self.block(h).mean(1))


class OwnAttention(nn.Module):
    """Attention of linear layers on [n, T, d], RMS normalisation with a gain of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(1 + 0.1 * torch.randn(6))
        self.qkv = nn.Linear(6, 18)
        self.out = nn.Linear(6, 6)
        self.read = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x / x.square().mean(-1, keepdim=True).sqrt() * self.gain
        q, k, v = self.qkv(h).chunk(3, -1)
        h = x + self.out(torch.softmax(q @ k.mT / 6**0.5, -1) @ v)
        return self.read(h).mean(1)


class Scaled(nn.Module):
    """Weights that reach their call as multiples, views and transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 8))
        self.second = nn.Parameter(torch.randn(48))
        self.third = nn.Parameter(torch.randn(1, 6, 8))
        self.shift = nn.Parameter(torch.randn(8))
        self.gain = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ (self.first * 2 / 5**0.5) + 0.3 * self.shift)
        h = torch.tanh(F.linear(h, -self.second.view(8, 6).t() / 3))
        return self.gain * h + F.linear(torch.sin(x @ self.first.detach()), self.third[0][None].squeeze(0))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).sigmoid_()
        h = h.mul(2)
        h += torch.tanh(self.second(h.clone()))
        return self.last(h).add_(1)


class Unusual(nn.Module):
    """A weight used outside its layer's call and twice, and one inside a call that hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.hidden = nn.Linear(7, 7)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(h @ self.first.weight @ self.first.weight.T)
        return self.last(torch.einsum("oi,ni->no", self.hidden.weight.sin(), h) + self.hidden.bias)


class TokensFirst(nn.Module):
    """Linear layers on [T, n, d], on samples folded into tokens, and on something that is the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.across, self.folded, self.shared = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(4, 6)
        self.register_buffer("code", torch.randn(1, 4))
        self.read = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:  # [n, 3, 5]
        h = torch.tanh(self.across(x.transpose(0, 1))).transpose(0, 1)
        h = torch.tanh(self.folded(h.reshape(-1, 6))).view(len(x), 3, 6).sum(1)
        return self.read(h * self.shared(self.code))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.read = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.lstm(x)[0][:, -1])


class Hidden(torch.autograd.Function):
    """A product that function modes do not see."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Concealed(nn.Module):
    """A weight that acts once where a rule sees it and once where none does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(torch.tanh(x @ self.weight), self.weight)


def frozen(net: nn.Sequential, *names: str) -> nn.Sequential:
    for name in names:
        net.get_parameter(name).requires_grad_(False)
    return net


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Name -> network in float64, shape of an input (of ``token`` networks: of token numbers)."""
    torch.manual_seed(0)
    flat = (nn.Flatten(), nn.Tanh())
    made: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "mlp": (mlp(5, 8, 2, 3, activation="tanh", b_std=0.3, readout_b_std=0.1), (5,)),
        "cnn gap": (cnn(2, 4, 2, 1, "tanh", "gap", b_std=0.2), (2, 4, 4)),
        "linear": (nn.Linear(5, 3), (5,)),
        "standard": (nn.Sequential(Linear(5, 8, 1.2, 0.3, "standard"), nn.ReLU(), nn.Linear(8, 2)), (5,)),
        "positions": (
            nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2), nn.Flatten(), nn.Linear(6, 3)),
            (3, 5),
        ),
        "long": (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(60, 2)), (20, 4)),
        "stride": (
            nn.Sequential(nn.Conv2d(3, 18, 3, 2, 1), nn.Tanh(), nn.Conv2d(18, 4, 3, 2), *flat, nn.Linear(4, 2)),
            (3, 8, 8),
        ),
        "groups": (
            nn.Sequential(
                nn.Conv2d(4, 36, 3, groups=2),
                nn.Tanh(),
                nn.Conv2d(36, 34, 2, groups=2),
                nn.Tanh(),
                nn.Conv2d(34, 34, 2, groups=34),
                nn.Flatten(),
                nn.Linear(136, 2),
            ),
            (4, 6, 6),
        ),
        "dilation": (
            nn.Sequential(
                nn.Conv2d(2, 17, (3, 2), dilation=(1, 2), padding=(2, 1)),
                nn.Tanh(),
                nn.Conv2d(17, 3, 3, dilation=2, padding="same"),
                *flat,
                nn.Linear(147, 2),
            ),
            (2, 5, 7),
        ),
        "circular": (
            nn.Sequential(
                Conv2d(2, 16, 3, padding="same", padding_mode="circular", b_std=0.2),
                nn.Tanh(),
                Conv2d(16, 3, 2, padding="same"),
                *flat,
                nn.Linear(48, 2),
            ),
            (2, 4, 4),
        ),
        "few positions": (
            nn.Sequential(nn.Conv2d(16, 20, 3, padding=1), nn.Tanh(), nn.Conv2d(20, 5, 1), *flat, nn.Linear(20, 2)),
            (16, 2, 2),
        ),
        "grouped pairs": (
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)
            ),
            (32, 2, 2),
        ),
        "pooling": (
            nn.Sequential(
                nn.Conv2d(2, 6, 3, padding=1),
                nn.GELU(),
                nn.AvgPool2d(2),
                nn.Conv2d(6, 6, 3),
                nn.Tanh(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(6, 3),
            ),
            (2, 8, 8),
        ),
        "resnet": (resnet(), (3, 8, 8)),
        "channelwise": (Channelwise().eval(), (2, 8, 8)),
        "layer norm": (nn.Sequential(nn.Linear(5, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 2)), (5,)),
        "layer norm of images": (
            nn.Sequential(nn.LayerNorm((2, 4, 4)), nn.Flatten(), nn.RMSNorm(32), nn.Linear(32, 2)),
            (2, 4, 4),
        ),
        "transposed convolution": (
            nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(75, 2)),
            (2, 4, 4),
        ),
        "one dimension": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), (2, 6)),
        "frozen weight": (
            frozen(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), "0.weight", "2.bias"),
            (5,),
        ),
        "frozen filters": (
            frozen(
                nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), *flat, nn.Linear(16, 2)), "0.weight", "1.weight"
            ),
            (2, 4, 4),
        ),
        "token": (Tokens().eval(), (5,)),
        "token tied": (Tokens(tied=True).eval(), (5,)),
        "token bag": (nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 2)), (5,)),
        "attention": (OwnAttention(), (4, 6)),
        "weight norm": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 7)), nn.Tanh(), nn.Linear(7, 2)),
            (5,),
        ),
        "scaled": (Scaled(), (5,)),
        "in place": (InPlace(), (5,)),
        "unusual": (Unusual(), (5,)),
        "recurrent": (Recurrent(), (5, 4)),
        "concealed": (Concealed(), (5,)),
        "tokens first": (TokensFirst(), (3, 5)),
    }
    return {name: (net.double(), shape) for name, (net, shape) in made.items()}


def inputs(name: str, shape: tuple[int, ...], n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name.split()[0] == "token":
        return torch.randint(11, (n, *shape), generator=generator)
    return torch.randn(n, *shape, dtype=torch.float64, generator=generator)
