"""Where the image data sets come from: a folder of ``.npz`` files, Debian's package, or torchvision.

All of them arrive as one :class:`Source`, checked, or as one sentence that says what is wrong.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# Of Debian's package dataset-fashion-mnist.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
KEYS = ("x_train", "y_train", "x_test", "y_test")
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "svhn": "SVHN"}


@dataclass(frozen=True, eq=False)
class Source:
    """Images and labels as they are stored.

    Attributes:
        x_train: uint8 [n, h, w] or [n, h, w, c].
        y_train: int64 [n].
        x_test: uint8 [m, h, w] or [m, h, w, c].
        y_test: int64 [m].
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(name: str, classes: int, folder: str | os.PathLike[str] | None = None, *, download: bool = False) -> Source:
    """Find and read a data set.

    It is ``<name>.npz`` in the data folder: ``folder``, else the environment variable WIDEBENCH_DATA, else ``data`` in
    the current directory; the first of the three that is named is the only one looked into. Failing that, Fashion-MNIST
    is Debian's, unless ``folder`` is given; failing that, torchvision's in the data folder.

    Args:
        name: "mnist", "fashion_mnist", "cifar10" or "svhn".
        classes: number of classes; labels are 0 to classes - 1.
        folder: the data folder.
        download: let torchvision download into the data folder what is not there.

    Raises:
        FileNotFoundError: it is nowhere.
        ValueError: a file is truncated, corrupt or of the wrong content.
    """
    named = folder if folder is not None else os.environ.get("WIDEBENCH_DATA") or "data"
    where = Path(named).expanduser()
    file = where / f"{name}.npz"
    looked = [str(file.absolute())]
    if file.is_file():
        return _checked(_read_npz(file), str(file), classes)
    if name == "fashion_mnist" and folder is None:
        looked.append(str(DEBIAN_FASHION_MNIST))
        if DEBIAN_FASHION_MNIST.is_dir():
            return _checked(_read_idx_folder(DEBIAN_FASHION_MNIST), str(DEBIAN_FASHION_MNIST), classes)
    arrays, remark = _from_torchvision(name, where, download)
    if arrays is not None:
        return _checked(arrays, f"torchvision's {_TORCHVISION[name]}", classes)
    raise FileNotFoundError(
        f"No data for task '{name}': looked for {', '.join(looked)} and in torchvision ({remark}); put {name}.npz "
        f"(arrays {' '.join(KEYS)}, images uint8 [n, h, w] or [n, h, w, c]) into a folder and name it by folder=, by "
        f"the environment variable WIDEBENCH_DATA, or ./data."
    )


def lacking(*names: str) -> str:
    """A sentence that says which files ``load`` would not find in the data folder, or Debian's; empty if none.

    Nothing is read, torchvision not asked.
    """
    folder = Path(os.environ.get("WIDEBENCH_DATA") or "data").expanduser()
    absent = [
        f"{name}.npz"
        for name in names
        if not (folder / f"{name}.npz").is_file() and not (name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir())
    ]
    if not absent:
        return ""
    return f"No image data: no {', '.join(absent)} in {folder} (name another folder by WIDEBENCH_DATA)."


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    with open(file, "rb") as stream:
        try:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive")
            missing = [key for key in KEYS if key not in archive.files]
            arrays = {key: archive[key] for key in KEYS if key not in missing}
        except Exception as error:  # on damaged bytes zipfile, zlib and numpy raise a dozen types between them
            raise ValueError(f"{file} is truncated or corrupt, or no .npz file ({_brief(error)}).") from error
    if missing:
        raise ValueError(f"{file} must hold the arrays {', '.join(KEYS)}; missing: {', '.join(missing)}.")
    return arrays


def _read_idx_folder(folder: Path) -> dict[str, np.ndarray]:
    names = {
        "x_train": "train-images-idx3-ubyte.gz",
        "y_train": "train-labels-idx1-ubyte.gz",
        "x_test": "t10k-images-idx3-ubyte.gz",
        "y_test": "t10k-labels-idx1-ubyte.gz",
    }
    for name in names.values():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} must hold {', '.join(names.values())}; missing: {name}.")
    return {key: read_idx(folder / name) for key, name in names.items()}


def read_idx(file: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes, the format of MNIST: uint8, of the shape that the file says.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, their lengths as big-endian 32-bit
    integers, the values.

    Raises:
        ValueError: the file is truncated, corrupt or of another type.
    """
    packed = file.read_bytes()
    try:
        content = gzip.decompress(packed)
        zeros, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
        if (zeros, kind) != (0, 8):
            raise ValueError("not IDX of unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{file} is truncated or corrupt, or no gzipped IDX file ({_brief(error)}).") from error


def _from_torchvision(name: str, root: Path, download: bool) -> tuple[dict[str, np.ndarray] | None, str]:
    """The four arrays, or None and why."""
    try:
        import torchvision.datasets as datasets
    except ImportError:
        return None, "not installed"
    except (RuntimeError, OSError) as error:  # a build for another torch fails so
        return None, f"does not import: {_brief(error)}"
    try:
        return _torchvision_arrays(datasets, name, str(root), download), ""
    except (RuntimeError, OSError) as error:
        if download:
            return None, f"download failed: {_brief(error)}"
        return None, f"not in {root.absolute()}, and download is false"


def _torchvision_arrays(datasets: ModuleType, name: str, root: str, download: bool) -> dict[str, np.ndarray]:
    make: Any = getattr(datasets, _TORCHVISION[name])
    arrays = {}
    for split in ("train", "test"):
        which: dict[str, Any] = {"split": split} if name == "svhn" else {"train": split == "train"}
        data = make(root, download=download, **which)
        images = np.asarray(data.data)
        arrays[f"x_{split}"] = images.transpose(0, 2, 3, 1) if name == "svhn" else images
        arrays[f"y_{split}"] = np.asarray(data.labels if name == "svhn" else data.targets)
    return arrays


def _brief(error: Exception) -> str:
    """Its first line, up to 100 characters: zipfile quotes the bytes it found."""
    return (str(error) or type(error).__name__).splitlines()[0][:100]


def _checked(arrays: dict[str, np.ndarray], origin: str, classes: int) -> Source:
    for key, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(f"NaN in {key} of {origin}.")
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if images.dtype != np.uint8:
            raise ValueError(f"x_{split} of {origin} must be uint8, got {images.dtype}.")
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
            raise ValueError(
                f"x_{split} of {origin} must be [n, h, w], or [n, h, w, c] with c 1 or 3, got {list(images.shape)}."
            )
        if labels.ndim == 2 and labels.shape[1] == 1:  # a widespread layout of CIFAR-10
            labels = arrays[f"y_{split}"] = labels[:, 0]
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"y_{split} of {origin} must be one whole number for each of the {len(images)} images, got "
                f"{labels.dtype} {list(labels.shape)}."
            )
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            raise ValueError(
                f"y_{split} of {origin} must be labels 0 to {classes - 1}, got {labels[outside][0]} in row "
                f"{int(outside.argmax())}."
            )
    return Source(
        arrays["x_train"], arrays["y_train"].astype(np.int64), arrays["x_test"], arrays["y_test"].astype(np.int64)
    )
