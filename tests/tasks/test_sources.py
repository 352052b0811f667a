"""Reading image data: where it is looked for, and one sentence for everything that can be wrong with it."""

from __future__ import annotations

import gzip
import re
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.sources
from tasks.sources import KEYS, Source, load, read_idx


def arrays(mark: int = 0, n: int = 12, m: int = 8) -> dict[str, np.ndarray]:
    """A tiny data set; ``mark`` is its first pixel, to tell sources apart."""
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.integers(0, 256, (n, 4, 4), dtype=np.uint8),
        "y_train": np.arange(n) % 10,
        "x_test": rng.integers(0, 256, (m, 4, 4), dtype=np.uint8),
        "y_test": np.arange(m) % 10,
    }
    made["x_train"][0, 0, 0] = mark
    return made


def npz(folder: Path, name: str = "mnist", **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in (arrays() | changed).items() if value is not None}
    np.savez(folder / f"{name}.npz", **kept)
    return folder / f"{name}.npz"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def debian(folder: Path, mark: int = 0) -> Path:
    folder.mkdir(parents=True)
    for key, array in arrays(mark).items():
        split, axes = (
            ("train" if key.endswith("train") else "t10k"),
            ("images-idx3" if key[0] == "x" else "labels-idx1"),
        )
        (folder / f"{split}-{axes}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return folder


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data anywhere: not by the environment, the current directory, Debian or torchvision."""
    monkeypatch.delenv("WIDEBENCH_DATA", raising=False)
    monkeypatch.setattr(tasks.sources, "DEBIAN_FASHION_MNIST", tmp_path / "no-debian")
    monkeypatch.setitem(sys.modules, "torchvision", None)  # "import torchvision" then raises ImportError
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def mark(source: Source) -> int:
    return int(source.x_train[0, 0, 0])


def test_reads_what_was_written(tmp_path: Path) -> None:
    npz(tmp_path)
    source = load("mnist", 10, tmp_path)
    for key, wanted in arrays().items():
        np.testing.assert_array_equal(getattr(source, key), wanted)
    assert source.y_train.dtype == np.int64


def test_labels_in_a_column_and_in_bytes_are_read(tmp_path: Path) -> None:
    npz(tmp_path, y_train=arrays()["y_train"].astype(np.uint8)[:, None])
    np.testing.assert_array_equal(load("mnist", 10, tmp_path).y_train, arrays()["y_train"])


def test_the_first_folder_that_is_named_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz(tmp_path / "argument", x_train=arrays(1)["x_train"])
    npz(tmp_path / "environment", x_train=arrays(2)["x_train"])
    npz(tmp_path / "here" / "data", x_train=arrays(3)["x_train"])
    assert mark(load("mnist", 10)) == 3
    monkeypatch.setenv("WIDEBENCH_DATA", "")  # set to nothing is not set
    assert mark(load("mnist", 10)) == 3
    monkeypatch.setenv("WIDEBENCH_DATA", str(tmp_path / "environment"))
    assert mark(load("mnist", 10)) == 2
    assert mark(load("mnist", 10, str(tmp_path / "argument"))) == 1
    # other data than asked for would be worse than none: a named folder without them is not passed over
    monkeypatch.setenv("WIDEBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        load("mnist", 10)
    with pytest.raises(FileNotFoundError):
        load("mnist", 10, tmp_path / "nowhere")


def test_debian_s_package_comes_second_and_for_fashion_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.sources, "DEBIAN_FASHION_MNIST", debian(tmp_path / "debian", mark=7))
    source = load("fashion_mnist", 10)
    for key, wanted in arrays(7).items():
        np.testing.assert_array_equal(getattr(source, key), wanted)
    with pytest.raises(FileNotFoundError):
        load("mnist", 10)
    with pytest.raises(FileNotFoundError):  # a folder given by name is meant
        load("fashion_mnist", 10, tmp_path / "here")
    npz(tmp_path / "here" / "data", "fashion_mnist", x_train=arrays(3)["x_train"])
    assert mark(load("fashion_mnist", 10)) == 3


def test_missing_data_say_where_and_how(tmp_path: Path) -> None:
    file = tmp_path / "here" / "data" / "fashion_mnist.npz"
    with pytest.raises(FileNotFoundError) as caught:
        load("fashion_mnist", 10)
    assert str(caught.value) == (
        f"No data for task 'fashion_mnist': looked for {file}, {tmp_path / 'no-debian'} and in torchvision (not "
        "installed); put fashion_mnist.npz (arrays x_train y_train x_test y_test, images uint8 [n, h, w] or "
        "[n, h, w, c]) into a folder and name it by folder=, by the environment variable WIDEBENCH_DATA, or ./data."
    )
    with pytest.raises(FileNotFoundError, match=re.escape(f"looked for {tmp_path / 'x' / 'svhn.npz'} and in torch")):
        load("svhn", 10, tmp_path / "x")


FLOATS = arrays()["x_train"].astype(np.float32)
HOLES = FLOATS.copy()
HOLES[3, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x_test": None}, "{} must hold the arrays x_train, y_train, x_test, y_test; missing: x_test."),
        (
            {"x_test": None, "y_test": None},
            "{} must hold the arrays x_train, y_train, x_test, y_test; missing: x_test, y",
        ),
        ({"x_train": HOLES}, "NaN in x_train of {}."),
        ({"y_test": np.full(8, np.nan)}, "NaN in y_test of {}."),
        ({"x_train": FLOATS}, "x_train of {} must be uint8, got float32."),
        (
            {"x_test": np.zeros((8, 16), np.uint8)},
            "x_test of {} must be [n, h, w], or [n, h, w, c] with c 1 or 3, got [8",
        ),
        (
            {"x_train": np.zeros((12, 3, 4, 4), np.uint8)},
            "x_train of {} must be [n, h, w], or [n, h, w, c] with c 1 or 3",
        ),
        (
            {"y_train": np.arange(11)},
            "y_train of {} must be one whole number for each of the 12 images, got int64 [11].",
        ),
        (
            {"y_train": np.zeros(12)},
            "y_train of {} must be one whole number for each of the 12 images, got float64 [12].",
        ),
        (
            {"y_train": np.eye(12, dtype=int)},
            "y_train of {} must be one whole number for each of the 12 images, got int64",
        ),
        ({"y_train": np.arange(12)}, "y_train of {} must be labels 0 to 9, got 10 in row 10."),
        ({"y_test": np.arange(8) - 1}, "y_test of {} must be labels 0 to 9, got -1 in row 0."),
        ({"y_test": np.array([{}] * 8)}, "{} is truncated or corrupt, or no .npz file ("),
    ],
)
def test_refuses_contents(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    file = npz(tmp_path, **changed)
    with pytest.raises(ValueError, match="^" + re.escape(sentence.replace("{}", str(file), 1))):
        load("mnist", 10, tmp_path)


def test_refuses_a_truncated_npz(tmp_path: Path) -> None:
    whole = npz(tmp_path).read_bytes()
    for length in (0, 1, 3, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "mnist.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^\S*mnist\.npz is truncated or corrupt, or no \.npz file \(.*\)\.$"):
            load("mnist", 10, tmp_path)


def test_refuses_what_is_no_npz(tmp_path: Path) -> None:
    with open(tmp_path / "mnist.npz", "wb") as stream:
        np.save(stream, np.arange(3))
    with pytest.raises(ValueError, match=r"is truncated or corrupt, or no \.npz file \(one array, not an archive\)\.$"):
        load("mnist", 10, tmp_path)
    (tmp_path / "mnist.npz").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"is truncated or corrupt, or no \.npz file"):
        load("mnist", 10, tmp_path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a changed byte does to zipfile, zlib or numpy: it is a ValueError, or the data are as they were."""
    folder = tmp_path_factory.mktemp("damaged")
    np.savez_compressed(folder / "mnist.npz", **arrays())  # type: ignore[arg-type]
    content = bytearray((folder / "mnist.npz").read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    (folder / "mnist.npz").write_bytes(content)
    try:
        source = load("mnist", 10, folder)
    except ValueError:
        return
    for key, wanted in arrays().items():
        np.testing.assert_array_equal(getattr(source, key), wanted)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4)])
def test_idx_reads_what_was_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(wanted)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), wanted)


def test_idx_refuses_damage(tmp_path: Path) -> None:
    file, content = tmp_path / "a.gz", idx(np.zeros((5, 4, 4)))
    signed = struct.pack(">HBBI", 0, 9, 1, 3) + bytes(3)
    damaged = [b"", b"plain", gzip.compress(b""), gzip.compress(content)[:-9], gzip.compress(content)[:30]]
    for packed in [*damaged, *(gzip.compress(raw) for raw in (content[:-1], content + b"0", content[:6], signed))]:
        file.write_bytes(packed)
        with pytest.raises(ValueError, match=r"^\S*a\.gz is truncated or corrupt, or no gzipped IDX file \(.*\)\.$"):
            read_idx(file)


def test_a_debian_folder_without_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = debian(tmp_path / "debian")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(tasks.sources, "DEBIAN_FASHION_MNIST", folder)
    with pytest.raises(FileNotFoundError, match=r"must hold train-images.*; missing: t10k-labels-idx1-ubyte\.gz\.$"):
        load("fashion_mnist", 10)


def test_debian_s_own_files() -> None:
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip(f"no {folder}: Debian's dataset-fashion-mnist is not installed")
    assert read_idx(folder / "train-images-idx3-ubyte.gz").shape == (60000, 28, 28)
    assert np.bincount(read_idx(folder / "t10k-labels-idx1-ubyte.gz")).tolist() == [1000] * 10


class _Base:
    """Like a data set of torchvision: a RuntimeError if it is neither in ``root`` nor to be downloaded."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def _fill(self, train: bool, root: str, download: bool) -> dict[str, np.ndarray]:
        self.calls.append((type(self).__name__, train, root, download))
        if not download:
            raise RuntimeError("Dataset not found.")
        made = arrays(9)
        return {"x": made["x_train" if train else "x_test"], "y": made["y_train" if train else "y_test"]}


class FashionMNIST(_Base):
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        made = self._fill(train, root, download)
        self.data, self.targets = made["x"], made["y"]


class CIFAR10(_Base):
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        made = self._fill(train, root, download)
        self.data, self.targets = np.stack([made["x"]] * 3, 3), made["y"].tolist()


class SVHN(_Base):
    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        made = self._fill(split == "train", root, download)
        self.data, self.labels = np.stack([made["x"], made["x"] // 2, made["x"] // 4], 1), made["y"]


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    datasets = types.ModuleType("torchvision.datasets")
    for kind in (FashionMNIST, CIFAR10, SVHN):
        setattr(datasets, kind.__name__, kind)
    package = types.ModuleType("torchvision")
    package.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    monkeypatch.setattr(_Base, "calls", [])
    return types.SimpleNamespace(calls=_Base.calls)


def test_torchvision_comes_last(tmp_path: Path, torchvision: types.SimpleNamespace) -> None:
    assert mark(load("fashion_mnist", 10, tmp_path, download=True)) == 9
    assert torchvision.calls == [("FashionMNIST", train, str(tmp_path), True) for train in (True, False)]
    npz(tmp_path, "fashion_mnist", x_train=arrays(3)["x_train"])
    assert mark(load("fashion_mnist", 10, tmp_path, download=True)) == 3


def test_torchvision_layouts(tmp_path: Path, torchvision: types.SimpleNamespace) -> None:
    wanted = arrays(9)["x_train"]
    cifar = load("cifar10", 10, tmp_path, download=True)
    np.testing.assert_array_equal(cifar.x_train, np.stack([wanted] * 3, 3))
    np.testing.assert_array_equal(cifar.y_train, arrays()["y_train"])
    svhn = load("svhn", 10, tmp_path, download=True)  # torchvision has its channels first
    np.testing.assert_array_equal(svhn.x_train, np.stack([wanted, wanted // 2, wanted // 4], 3))


def test_torchvision_downloads_only_when_asked(tmp_path: Path, torchvision: types.SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"(not in {tmp_path}, and download is false); put svhn.npz")):
        load("svhn", 10, tmp_path)
    assert torchvision.calls == [("SVHN", True, str(tmp_path), False)]


def test_a_download_that_fails_is_told(
    tmp_path: Path, torchvision: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no route to host\nand a long trace")

    monkeypatch.setattr(_Base, "_fill", fail)
    with pytest.raises(FileNotFoundError, match=r"\(download failed: no route to host\); put svhn\.npz"):
        load("svhn", 10, tmp_path, download=True)


def test_a_torchvision_that_does_not_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\(does not import: operator torchvision::nms does not exist\); put"):
        load("svhn", 10, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "svhn"])
def test_real_files_are_read(data_folder: Path, name: str) -> None:
    if not (data_folder / f"{name}.npz").is_file():
        pytest.skip(f"no {name}.npz in the data folder")
    source = load(name, 10, data_folder)
    assert all(getattr(source, key).size for key in KEYS)
    assert source.x_train.shape[1:] == ((28, 28) if "mnist" in name else (32, 32, 3))
    assert set(source.y_train) == set(source.y_test) == set(range(10))
