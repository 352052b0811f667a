"""The full kernel of a ResNet-18 on CIFAR-10, ten outputs: its time, its memory and its share of the matmul ceiling.

    python tests/speed/ntk_gpu.py --data FOLDER [--n 2000] [--json docs/results/ntk_gpu.json]    # on a GPU
    python tests/speed/ntk_gpu.py --device meta --memory 64e9      # without one: FLOPs and bytes of that run
    python tests/speed/ntk_gpu.py --device cpu --n 16 --width 8    # a dry run

FLOPs are those of torch's ``FlopCounterMode`` and bytes those of the tensors alive at once, both on the ``meta``
device, where a host read or a tensor of another device is an error; on a GPU the allocator's own peak stands beside
them. The ceiling is what a product of two square matrices reaches in the same run. All of it in full float32: TF32 is
off, for it has three digits. Without a data folder the images are random: neither time nor memory depends on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]

import torch  # noqa: E402
from live_bytes import LiveBytes  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.ntk import empirical_ntk, explain  # noqa: E402
from tasks.images import cifar10  # noqa: E402
from tests.counted_flops import counted_flops  # noqa: E402
from tests.one_device import OneDevice  # noqa: E402


class Block(nn.Module):
    """A basic block (He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """For images of 32 x 32; ``width`` 64: 11.2e6 parameters. In evaluation mode, with the statistics of a start."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage in range(4):
        for block in range(2):
            out = width * 2**stage
            layers.append(Block(channels, out, 2 if stage and not block else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def images(n: int, folder: Path | None) -> Tensor:
    if folder is None:
        return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return cifar10(classes=None, n_train=n, n_test=1, inputs="standardised", folder=folder).x_train


def foreseen(net: nn.Module, x: Tensor, memory: int | None) -> dict[str, float]:
    """FLOPs and bytes, the kernel's included, of the same call on the meta device."""
    params = {name: parameter.detach()[None].to("meta") for name, parameter in net.named_parameters()}
    with OneDevice(), LiveBytes() as bytes_:
        flops = counted_flops(lambda: empirical_ntk(net, x.to("meta"), params=params, memory=memory))
    return {"gflop": flops / 1e9, "gigabytes": bytes_.peak / 1e9}


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Of the fastest, after one that loads and compiles."""
    found = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ceiling(device: str) -> float:
    """GFLOP a second of a product of two square matrices."""
    side = 8192 if device == "cuda" else 1024
    square = torch.randn(side, side, device=device)
    return 2 * side**3 / 1e9 / seconds(lambda: square @ square, device, 5)


def measured(net: nn.Module, x: Tensor, memory: int | None, repeats: int) -> dict[str, float]:
    device = x.device.type
    top = ceiling(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found = {"seconds": seconds(lambda: empirical_ntk(net, x, memory=memory), device, repeats), "ceiling": top}
    if device == "cuda":
        found["allocated_gigabytes"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", choices=("cuda", "cpu", "meta"), default="cuda")
    parser.add_argument("--memory", type=float, help="bytes to work with besides the kernel; default: what is free")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    net, x = resnet18(options.width), images(options.n, options.data)
    memory = None if options.memory is None else int(options.memory)
    print(explain(net, x))
    result: dict[str, float | str] = {"n": options.n, "width": options.width, **foreseen(net, x, memory)}
    if options.device != "meta":
        result |= measured(net.to(options.device), x.to(options.device), memory, options.repeats)
        result["share_of_ceiling"] = result["gflop"] / result["seconds"] / result["ceiling"]  # type: ignore[operator]
        cuda = options.device == "cuda"
        result["device"] = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    print(json.dumps(result, indent=1))
    if options.json:
        head = {"command": " ".join(["python tests/speed/ntk_gpu.py", *sys.argv[1:]]), "torch": torch.__version__}
        options.json.write_text(json.dumps({**head, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
