"""Images: the right rows, classes, layout and pooling, on made-up files and on the real ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.images import CIFAR10, FASHION, cifar10, fashion_mnist, mnist, svhn
from tasks.task import Task

FACTORIES = {"mnist": mnist, "fashion_mnist": fashion_mnist, "cifar10": cifar10, "svhn": svhn}
SHAPES = {"mnist": (8, 8), "fashion_mnist": (8, 8), "cifar10": (8, 8, 3), "svhn": (8, 8, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random images of every data set, 200 for training and 100 for testing, labels 0 to 9 in turn."""
    made, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        x_train, x_test = (rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in (200, 100))
        y_train, y_test = np.arange(200) % 10, np.arange(100) % 10
        np.savez(made / f"{name}.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return made


def stored(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as archive:
        return dict(archive)


def find(x: torch.Tensor, images: np.ndarray) -> list[int]:
    """The stored images that the rows of a raw task [n, c, h, w] are, by number; each must be there once."""
    flat = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).reshape(len(x), -1).numpy()
    number = {image.tobytes(): i for i, image in enumerate(images.reshape(len(images), -1))}
    assert len(number) == len(images)
    return [number[row.tobytes()] for row in flat]


@pytest.mark.parametrize("name", FACTORIES)
def test_rows_come_from_their_own_split_with_their_labels(folder: Path, name: str) -> None:
    task = FACTORIES[name](classes=None, n_train=150, n_test=80, inputs="raw", folder=folder)
    data = stored(folder, name)
    assert task.name == f"{name}-all"
    assert task.x_shape == ((1, 8, 8) if len(SHAPES[name]) == 2 else (3, 8, 8))
    for split in ("train", "test"):
        rows = find(getattr(task, f"x_{split}"), data[f"x_{split}"])
        assert len(set(rows)) == len(rows)
        wanted = torch.eye(10)[torch.tensor(data[f"y_{split}"][rows])] - 0.1
        torch.testing.assert_close(getattr(task, f"y_{split}"), wanted)


@pytest.mark.parametrize("name", FACTORIES)
def test_default_pairs(folder: Path, name: str) -> None:
    task = FACTORIES[name](n_train=40, n_test=20, inputs="raw", folder=folder)
    first, second = {
        "mnist": (3, 8),
        "fashion_mnist": (FASHION.index("tshirt"), FASHION.index("shirt")),
        "cifar10": (CIFAR10.index("plane"), CIFAR10.index("ship")),
        "svhn": (3, 8),
    }[name]
    data = stored(folder, name)
    labels = data["y_train"][find(task.x_train, data["x_train"])]
    assert set(labels) == {first, second}
    assert task.y_train[:, 0].tolist() == [1 if label == first else -1 for label in labels]
    # all rows of both classes were asked for, so every one of them is there
    assert task.y_train.sum() == 0


def test_names_say_the_classes(folder: Path) -> None:
    sizes = {"n_train": 9, "n_test": 9, "folder": folder}
    assert cifar10(**sizes).name == "cifar10-plane_ship"
    assert cifar10(classes=[2, "truck", 3], **sizes).name == "cifar10-bird_truck_cat"
    assert mnist(classes="odd_even", **sizes).name == "mnist-odd_even"
    assert fashion_mnist(classes=["T-shirt/top", "Ankle boot"], **sizes).name == "fashion_mnist-tshirt_boot"


def test_classes_by_any_name_are_the_same(folder: Path) -> None:
    sizes = {"n_train": 9, "n_test": 9, "folder": folder}
    a, b, c = (cifar10(classes=classes, **sizes) for classes in ([0, 1], ["plane", "car"], ["airplane", "automobile"]))
    assert torch.equal(a.x_train, b.x_train)
    assert torch.equal(b.x_train, c.x_train)


def test_the_class_names_are_the_authors_own(folder: Path) -> None:
    """By their full names, in their order, all ten classes are those numbered 0 to 9."""
    cifar = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    fashion = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    for make, names in ((cifar10, cifar), (fashion_mnist, fashion)):
        by_name, by_number = (make(classes=c, n_train=50, n_test=9, folder=folder) for c in (names, None))
        assert torch.equal(by_name.y_train, by_number.y_train)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_size_averages_blocks_of_pixels(folder: Path, size: int) -> None:
    whole, small = (cifar10(n_train=9, n_test=9, inputs="raw", folder=folder, size=s) for s in (None, size))
    assert small.x_shape == (3, size, size)
    block = 8 // size
    for i in range(size):
        for j in range(size):
            wanted = whole.x_train[:, :, i * block : (i + 1) * block, j * block : (j + 1) * block].mean((2, 3))
            torch.testing.assert_close(small.x_train[:, :, i, j], wanted)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_seed_decides_everything(folder: Path, name: str) -> None:
    def made(seed: int, n_train: int = 20, noise: float = 0.5) -> Task:
        return FACTORIES[name](n_train=n_train, n_test=15, seed=seed, noise=noise, inputs="raw", folder=folder)

    a, b, c, longer, clean = made(3), made(3), made(4), made(3, n_train=30), made(3, noise=0.0)
    for field in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(a, field), getattr(b, field))
    assert not torch.equal(a.x_train, c.x_train)
    assert torch.equal(a.x_test, longer.x_test)
    assert torch.equal(a.y_test, clean.y_test)
    assert set(clean.y_train.flatten().tolist()) == {-1.0, 1.0}
    assert (a.y_train != clean.y_train).all()
    assert (a.noise, a.domain) == (0.5, None)


def test_inputs_default_to_the_sphere(folder: Path) -> None:
    task = cifar10(n_train=20, n_test=15, folder=folder)
    for x in (task.x_train, task.x_test):
        torch.testing.assert_close(x.flatten(1).norm(dim=1), torch.full((len(x),), math.sqrt(3 * 8 * 8)))
    standardised = cifar10(n_train=20, n_test=15, folder=folder, inputs="standardised").x_train
    assert float(standardised.square().flatten(1).sum(1).mean()) == pytest.approx(3 * 8 * 8, rel=1e-5)
    torch.testing.assert_close(standardised.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    with pytest.warns(UserWarning, match="the bias then dominates") as caught:
        cifar10(n_train=20, n_test=15, folder=folder, inputs="unit")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"n_train": 41},
            "n_train of task 'cifar10-plane_ship' must be at most 40, the rows of its classes among the t",
        ),
        (
            {"n_test": 21},
            "n_test of task 'cifar10-plane_ship' must be at most 20, the rows of its classes among the te",
        ),
        ({"n_train": 0}, "n_train must be a whole number of at least 1, got 0."),
        (
            {"classes": ["plane", "boat"]},
            "classes of task 'cifar10' must be null (all), or a list of at least two diffe",
        ),
        (
            {"classes": "odd_even"},
            "classes of task 'cifar10' must be null (all), or a list of at least two different on",
        ),
        ({"size": 3}, "size of task 'cifar10' must divide the images' 8 x 8, got 3."),
        ({"size": 9}, "size of task 'cifar10' must be a whole number from 1 to 8, got 9."),
        ({"size": 0}, "size of task 'cifar10' must be a whole number from 1 to 8, got 0."),
        ({"size": 4.0}, "size of task 'cifar10' must be a whole number from 1 to 8, got 4.0."),
        (
            {"inputs": "white"},
            "inputs of task 'cifar10-plane_ship' must be one of standardised, sphere, raw, unit, got",
        ),
        ({"noise": -1.0}, "noise of task 'cifar10-plane_ship' must be a variance, finite and >= 0, got -1.0."),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1."),
    ],
)
def test_refuses(folder: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        cifar10(**({"n_train": 20, "n_test": 10, "folder": folder} | arguments))


def test_refuses_shapes_that_differ(tmp_path: Path) -> None:
    x_train, x_test = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.arange(75, dtype=np.uint8).reshape(3, 5, 5)
    y = np.array([3, 8, 3])
    np.savez(tmp_path / "mnist.npz", x_train=x_train, y_train=y, x_test=x_test, y_test=y)
    with pytest.raises(
        ValueError, match=r"^Training and test images of task 'mnist-3_8' must have one shape, got \[1, 4"
    ):
        mnist(n_train=2, n_test=2, folder=tmp_path)


@pytest.mark.parametrize("name", FACTORIES)
def test_missing_data_are_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"^No data for task '{name}': looked for .*{name}\.npz .*WIDEBENCH_DATA"
    ):
        FACTORIES[name](folder=tmp_path)


def test_the_folder_of_the_environment_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEBENCH_DATA", str(folder))
    by_argument = mnist(n_train=9, n_test=9, folder=folder)
    assert torch.equal(mnist(n_train=9, n_test=9).x_train, by_argument.x_train)


REAL: dict[str, tuple[Callable[..., Task], tuple[int, ...]]] = {
    "mnist": (mnist, (1, 28, 28)),
    "fashion_mnist": (fashion_mnist, (1, 28, 28)),
    "cifar10": (cifar10, (3, 32, 32)),
    "svhn": (svhn, (3, 32, 32)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_can_be_learnt(data_folder: Path, name: str) -> None:
    """The nearest training image of a class tells it better than chance: labels and images belong together."""
    if not (data_folder / f"{name}.npz").is_file():
        pytest.skip(f"no {name}.npz in the data folder")
    make, shape = REAL[name]
    task = make(folder=data_folder, size=shape[1] // 4)
    assert (task.n_train, task.n_test, task.outputs) == (256, 350, 1)
    nearest = torch.cdist(task.x_test.flatten(1), task.x_train.flatten(1)).argmin(1)
    right = (task.y_train[nearest] == task.y_test).float().mean()
    assert right > 0.5 + 5 * 0.5 / math.sqrt(350)
