"""The Triton kernels against the recursion: on a GPU, or without one in Triton's interpreter, on small images."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from models.layers import Conv2d, Linear
from models.limits import infinite_width

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def conv(c_in: int, size: int = 3, padding: int | None = None, mode: str = "zeros") -> Conv2d:
    padding = size // 2 if padding is None else padding
    return Conv2d(c_in, 3, size, padding=padding, padding_mode=mode, w_std=1.3, b_std=0.3)


def averaged(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Linear(3, 1, b_std=0.2))


# Nets and the side of the images they are for.
CHAINS = {
    "gap": (lambda: averaged(conv(2), nn.ReLU(), conv(3, 1), nn.LeakyReLU(0.2)), 3),
    "flatten": (lambda: nn.Sequential(conv(2), nn.ReLU(), conv(3, 5), nn.Flatten(), Linear(3 * 36, 1)), 6),
    "pool": (lambda: averaged(conv(2), nn.ReLU(), nn.AvgPool2d(2), conv(3), nn.ReLU()), 4),
    "pool, flatten": (
        lambda: nn.Sequential(conv(2), nn.ReLU(), nn.AvgPool2d(2), conv(3), nn.ReLU(), nn.Flatten(), Linear(12, 1)),
        4,
    ),
    "two pools": (
        lambda: nn.Sequential(
            conv(2), nn.ReLU(), nn.AvgPool2d(2), nn.AvgPool2d(2, divisor_override=1), nn.Flatten(), Linear(3, 1)
        ),
        4,
    ),
    "pool by 3": (lambda: averaged(conv(2), nn.ReLU(), nn.AvgPool2d(3), conv(3), nn.ReLU()), 6),
    "circular": (
        lambda: averaged(conv(2, mode="circular"), nn.ReLU(), nn.AvgPool2d(2), conv(3, 1), nn.ReLU()), 4,
    ),
    "valid": (lambda: averaged(conv(2, 2, 0), nn.ReLU(), nn.AvgPool2d(2), conv(3), nn.ReLU()), 5),
}  # fmt: skip
# Each sum over a window, and each dot product with 0 and 1, rounds once; a dozen in a row at 6e-8 and 1e-16 each.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-11}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# The geometry in float32; float64 differs in its polynomial and its matrix products.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*((n, torch.float32) for n in CHAINS), ("pool", torch.float64)])
def test_as_the_recursion(name, dtype) -> None:
    make, size = CHAINS[name]
    limit = infinite_width(make())
    x1, x2 = (torch.randn(n, 2, size, size, dtype=dtype, device=DEVICE) for n in (1, 1))
    found = limit(x1, x2, engine="triton")
    expected = limit(x1.double(), x2.double(), engine="torch")
    for kernel, reference in zip(found[:2], expected[:2], strict=True):
        assert kernel.dtype == dtype
        torch.testing.assert_close(kernel.double(), reference, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.slow
def test_symmetric_and_black_images() -> None:
    limit = infinite_width(
        nn.Sequential(conv(2), nn.ReLU(), nn.AvgPool2d(2), conv(3), nn.ReLU(), nn.Flatten(), Linear(12, 1))
    )
    x = torch.randn(4, 2, 4, 4, device=DEVICE)
    x[1] = 0
    x[2] = 1.5 * x[0]
    found, expected = limit(x, engine="triton"), limit(x.double(), engine="torch")
    for kernel, reference in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(kernel, kernel.T)
        # Where pixels agree the angle is the root of a rounding error, (2 * 6e-8)^.5, and the NTK linear in it.
        torch.testing.assert_close(kernel.double(), reference, rtol=4e-4, atol=0)
        away = torch.ones_like(reference, dtype=torch.bool).fill_diagonal_(False)
        away[0, 2] = away[2, 0] = False
        torch.testing.assert_close(kernel.double()[away], reference[away], rtol=2e-6, atol=0)
        # Images with themselves are exact.
        torch.testing.assert_close(kernel.double().diagonal(), reference.diagonal(), rtol=2e-6, atol=0)


@pytest.mark.slow
def test_patches_of_exactly_zero_with_trained_biases() -> None:
    """The derivative at 0 is autograd's, in every engine; with the angle's share there it is per cents off."""
    of = {"parameterization": "standard", "w_std": 1.0, "b_std": 0.0}
    net = nn.Sequential(
        Conv2d(1, 4, 3, padding=1, **of), nn.LeakyReLU(0.3), Conv2d(4, 4, 3, padding=1, **of), nn.ReLU()
    )
    limit = infinite_width(averaged(*net, Conv2d(4, 3, 1, **of)))
    x1, x2 = (torch.randn(2, 1, 6, 6, device=DEVICE) for _ in range(2))
    x1[:, :, :4] = 0
    x2[1] = 0
    found, expected = limit(x1, x2, engine="triton"), limit(x1.double(), x2.double(), engine="torch")
    torch.testing.assert_close(found.ntk.double(), expected.ntk, rtol=2e-6, atol=0)


def test_refusals(monkeypatch) -> None:
    x = torch.randn(2, 2, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match="engine='triton' knows chains of convolutions of stride 1"):
        infinite_width(averaged(conv(2), nn.Tanh()))(x, engine="triton")
    with pytest.raises(ValueError, match="at most 64 pixels a side"):
        infinite_width(averaged(conv(2), nn.ReLU()))(torch.zeros(1, 2, 65, 65, device=DEVICE), engine="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="engine='triton' runs on CUDA, not on cpu"):
        infinite_width(averaged(conv(2), nn.ReLU()))(x.cpu(), engine="triton")
    monkeypatch.setattr("models.limits.engines.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="engine='triton' needs the package triton"):
        infinite_width(averaged(conv(2), nn.ReLU()))(x, engine="triton")


@pytest.mark.slow
def test_works_without_triton() -> None:
    """Importing the limits, and the plain engines, never imports Triton."""
    code = (
        "import sys; sys.modules['triton'] = None; import torch; from models.limits import infinite_width; "
        "from models.cnn import cnn; "
        "infinite_width(cnn(1, 2, 1, 1, readout='gap'))(torch.randn(2, 1, 4, 4), engine='compiled')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from models.limits.triton_tiles import run_stage

POINTERS = {"first": "*i64", "second": "*i64", "geometry": "*i32"}
FLOATS = ("x", "y", "pooled", "s1", "s2", "numbers", "out")

ONES = ("n1", "channels", "layers", "rows")  # whole numbers of 1 are constants to Triton

def signature(kind, flags):
    names = run_stage.arg_names
    return {n: "constexpr" if n in flags else POINTERS.get(n, "*" + kind if n in FLOATS else "i32") for n in names}

for kind, capability, pooled, phases, block in (
    ("fp32", 80, False, True, 32), ("fp32", 90, True, False, 16), ("fp32", 90, True, True, 64),
    ("fp64", 90, False, True, 32),
):
    flags = dict(POOLED=pooled, PHASES=phases, WRAPS=False, ACCURATE=kind == "fp64", BLOCK=block)
    flags |= dict.fromkeys(ONES, 1) if not phases else {}
    source = ASTSource(run_stage, signature(kind, flags), constexprs=flags)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4 if block < 64 else 8})
    assert made.asm["cubin"] and made.metadata.shared < 99 * 2**10, made.metadata.shared
    assert kind == "fp64" or "mma" in made.asm["ptx"]
print("compiled")
"""


@pytest.mark.slow
def test_compiles_for_gpus(tmp_path) -> None:
    """Machine code for two generations of GPUs, which needs none of them: Triton brings its own assembler."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    environment["PYTHONPATH"] = os.getcwd()
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_chosen_on_cuda(caplog) -> None:
    limit = infinite_width(averaged(conv(3), nn.ReLU(), nn.AvgPool2d(2), conv(3), nn.ReLU()))
    x = torch.randn(24, 3, 32, 32, device="cuda")
    with caplog.at_level("INFO", "models.limits.infinite"):
        found = limit(x)
    assert "by the triton engine" in caplog.text
    expected = limit(x.double(), engine="torch")
    away = ~torch.eye(len(x), dtype=torch.bool, device="cuda")
    for kernel, reference in zip(found[:2], expected[:2], strict=True):
        assert kernel.device.type == "cuda"
        torch.testing.assert_close(kernel.double()[away], reference[away], rtol=5e-6, atol=0)
        torch.testing.assert_close(kernel.double(), reference, rtol=4e-4, atol=0)
