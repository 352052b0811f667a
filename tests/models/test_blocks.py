import logging
from collections.abc import Callable

import pytest
import torch

from models import blocks
from models.blocks import chunks, fill, free_memory, tile_shape, tiles
from models.tile_file import TileFile


class Recorder:
    """A tile function for a given matrix that remembers its tiles and can run out of memory."""

    def __init__(self, matrix: torch.Tensor, most_entries: float = float("inf"), error: Exception | None = None):
        self.matrix = matrix
        self.most_entries = most_entries
        self.error = error
        self.done: list[tuple[slice, slice]] = []
        self.failures = 0

    def __call__(self, rows: slice, cols: slice) -> torch.Tensor:
        tile = self.matrix[rows, cols]
        if tile.shape[0] * tile.shape[1] > self.most_entries:
            self.failures += 1
            raise self.error or MemoryError
        self.done.append((rows, cols))
        return tile

    def cover(self) -> torch.Tensor:
        count = torch.zeros(self.matrix.shape[:2], dtype=torch.long)
        for rows, cols in self.done:
            count[rows, cols] += 1
        return count


def _symmetric(n: int) -> torch.Tensor:
    a = torch.randn(n, n, dtype=torch.float64)
    return a + a.T


@pytest.mark.parametrize(("n1", "n2", "memory"), [(1, 1, 8), (37, 53, 8 * 100), (100, 7, 8 * 64), (40, 40, 10**6)])
def test_tiles_cover_exactly_within_the_budget(n1, n2, memory) -> None:
    tile = Recorder(torch.randn(n1, n2, dtype=torch.float64))
    out = torch.full((n1, n2), torch.nan, dtype=torch.float64)
    fill(out, tile, bytes_per_entry=8, memory=memory)
    assert torch.equal(out, tile.matrix)
    assert torch.equal(tile.cover(), torch.ones(n1, n2, dtype=torch.long))
    assert all(8 * (r.stop - r.start) * (c.stop - c.start) <= memory for r, c in tile.done)


@pytest.mark.parametrize(("n", "memory"), [(1, 8), (5, 8), (100, 8 * 300), (101, 8 * 77), (200, 10**7)])
def test_symmetric_does_each_pair_once(n, memory) -> None:
    tile = Recorder(_symmetric(n))
    out = torch.full((n, n), torch.nan, dtype=torch.float64)
    fill(out, tile, bytes_per_entry=8, memory=memory, symmetric=True)
    assert torch.equal(out, tile.matrix)
    cover = tile.cover()
    for rows, cols in tile.done:  # the square on the diagonal is done in full, for the product's sake
        if rows.start == cols.start:
            assert cols.stop >= rows.stop
            cover[rows, rows] = torch.ones_like(cover[rows, rows]).triu()
    assert torch.equal(cover, torch.ones_like(cover).triu())
    assert all(8 * (r.stop - r.start) * (c.stop - c.start) <= memory for r, c in tile.done)


def test_symmetric_with_ample_memory_saves_work() -> None:
    tile = Recorder(_symmetric(800))
    fill(torch.empty(800, 800, dtype=torch.float64), tile, bytes_per_entry=8, memory=10**9, symmetric=True)
    assert tile.cover().sum().item() / 800**2 == pytest.approx(0.5625)  # eight strips: (1 + 1/8) / 2


def test_rows_count_in_the_budget() -> None:
    tile = Recorder(torch.randn(64, 64))
    fill(torch.empty(64, 64), tile, bytes_per_entry=1, bytes_per_row=1000, memory=20_000)
    sizes = [(r.stop - r.start, c.stop - c.start) for r, c in tile.done]
    assert all(r * c + 1000 * (r + c) <= 20_000 for r, c in sizes)
    assert max(r + c for r, c in sizes) > 9  # and the budget is used


def test_max_side_and_even_pieces() -> None:
    assert tile_shape(1000, 50, lambda r, c: 0, 1, max_side=256) == (250, 50)
    assert tile_shape(768, 768, lambda r, c: 0, 1, symmetric=True, max_side=256) == (96, 256)


def test_tiles_go_strip_by_strip() -> None:
    order = [(rows.start, cols.start) for rows, cols in tiles(4, 6, 2, 3)]
    assert order == [(0, 0), (0, 3), (2, 0), (2, 3)]


def test_several_outputs_and_output_axes_are_mirrored() -> None:
    n, c = 50, 3
    a = torch.randn(n * c, n * c, dtype=torch.float64)
    full = (a + a.T).reshape(n, c, n, c).permute(0, 2, 1, 3)
    plain = _symmetric(n)
    outs = torch.empty(n, n, c, c, dtype=torch.float64), torch.empty(n, n, dtype=torch.float64)
    fill(outs, lambda r, s: (full[r, s], plain[r, s]), bytes_per_entry=8, memory=8 * 200, symmetric=True)
    assert torch.equal(outs[0], full)
    assert torch.equal(outs[1], plain)


def test_symmetric_result_is_symmetric_to_the_bit() -> None:
    x = torch.randn(90, 30)
    noise = iter(range(1000))
    out = torch.empty(90, 90)
    fill(
        out,
        lambda r, c: x[r] @ x[c].T + 1e-6 * next(noise) * torch.randn(r.stop - r.start, c.stop - c.start),
        bytes_per_entry=4,
        memory=4000,
        symmetric=True,
    )
    assert torch.equal(out, out.T)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_out_of_memory_halves_the_tile_and_goes_on(error, symmetric, caplog) -> None:
    tile = Recorder(_symmetric(120), most_entries=130, error=error)
    out = torch.full((120, 120), torch.nan, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, logger="models.blocks"):
        fill(out, tile, bytes_per_entry=8, memory=10**6, symmetric=symmetric)
    assert torch.equal(out, tile.matrix)
    assert len(caplog.records) == 1
    assert tile.failures < 12  # the size that fits is remembered: one failure a halving, not one a tile
    largest = max((r.stop - r.start) * (c.stop - c.start) for r, c in tile.done)
    assert 32 < largest <= 130
    if not symmetric:
        assert torch.equal(tile.cover(), torch.ones_like(tile.cover()))


def test_out_of_memory_on_a_single_entry_is_raised() -> None:
    tile = Recorder(torch.randn(3, 4), most_entries=0)
    with pytest.raises(MemoryError):
        fill(torch.empty(3, 4), tile, bytes_per_entry=1, bytes_per_row=100)


def test_other_errors_are_not_swallowed() -> None:
    tile = Recorder(torch.randn(8, 8), most_entries=10, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fill(torch.empty(8, 8), tile, bytes_per_entry=1)


def test_default_budget_follows_free_memory(monkeypatch) -> None:
    monkeypatch.setattr(blocks, "free_memory", lambda device: 200 * 2**20)
    tile = Recorder(torch.zeros(64, 64))
    fill(torch.empty(64, 64), tile, bytes_per_entry=2**20)
    assert max((r.stop - r.start) * (c.stop - c.start) for r, c in tile.done) == 128  # MiB, below .8 * 200


def test_free_memory_is_plausible() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("out", "options", "sentence"),
    [
        (torch.empty(2, 3), {"symmetric": True}, "symmetric needs as many rows as columns, not 2 x 3."),
        (torch.empty(2, 3), {"memory": 0}, "memory must be a positive number of bytes, or None for what is free"),
        (torch.empty(2, 3), {"memory": 3}, "memory must be at least 8 bytes, for one entry, not 3."),
        ((torch.empty(2, 3), torch.empty(3, 3)), {}, "out must be tensors of equal rows and columns"),
        ((torch.empty(2, 3), torch.empty(2, 3)), {}, "tile_fn must return 2 tensors, one an output, not 1."),
        (torch.empty(2, 3, 1), {}, "tile_fn must return shape [2, 3, 1] here, not [2, 3]."),
    ],
)
def test_bad_input_gets_one_sentence(out, options, sentence) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        fill(out, lambda r, c: torch.zeros(r.stop - r.start, c.stop - c.start), bytes_per_entry=8, **options)
    assert str(caught.value).startswith(sentence)


def test_default_budget_leaves_room_for_the_output(monkeypatch) -> None:
    out = torch.empty(64, 2**18)  # 64 MiB
    monkeypatch.setattr(blocks, "free_memory", lambda device: 200 * 2**20)
    tile = Recorder(torch.zeros(64, 1).expand(64, 2**18))
    fill(out, tile, bytes_per_entry=16)
    largest = max((r.stop - r.start) * (c.stop - c.start) for r, c in tile.done)
    assert 48 * 2**20 <= 16 * largest <= 96 * 2**20  # .8 * 200 - 64 MiB, and not below half of it


def test_chunks_halve_when_memory_runs_out(caplog) -> None:
    seen = []

    def compute(part: slice) -> list[int]:
        seen.append(part.stop - part.start)
        if seen[-1] > 6:
            raise MemoryError
        return list(range(part.start, part.stop))

    with caplog.at_level(logging.WARNING, logger="models.blocks"):
        found = [number for _, numbers in chunks(50, 30, compute) for number in numbers]
    assert found == list(range(50))
    assert seen[:4] == [25, 13, 7, 4]  # 50 in two even pieces, then halves, and the size that fits is kept
    assert max(seen[3:]) == 4
    assert len(caplog.records) == 1
    with pytest.raises(MemoryError):
        list(chunks(1, 1, lambda part: [0] * 10**18))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_file_is_filled_once_and_resumed(tmp_path, symmetric) -> None:
    matrix, path = _symmetric(60), tmp_path / "folder" / "kernel.npy"

    def run(tile: Callable[[slice, slice], torch.Tensor], memory: int) -> torch.Tensor:
        with TileFile(path, (60, 60), torch.float64, "one") as file:
            if not file.complete:
                fill(file.tensor, tile, bytes_per_entry=8, memory=memory, symmetric=symmetric, done=file)
                file.finish()
        return file.tensor

    first = Recorder(matrix)

    def stopped(rows: slice, cols: slice) -> torch.Tensor:
        if len(first.done) == 3:
            raise KeyboardInterrupt
        return first(rows, cols)

    with pytest.raises(KeyboardInterrupt):
        run(stopped, 8 * 200)
    second = Recorder(matrix)
    assert torch.equal(run(second, 8 * 900), matrix)
    assert not {(r.start, c.start) for r, c in first.done} & {(r.start, c.start) for r, c in second.done}
    third = Recorder(matrix)
    assert torch.equal(run(third, 8 * 900), matrix)
    assert not third.done
    for shape, dtype, fingerprint in (((60, 60), torch.float64, "two"), ((60, 59), torch.float64, "one")):
        with pytest.raises(ValueError, match="holds something else: remove it with kernel"):
            TileFile(path, shape, dtype, fingerprint)


@pytest.mark.parametrize(("n1", "n2", "memory"), [(64, 64, 9000), (37, 53, 4000), (100, 7, 3000), (100, 100, 10**6)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_tall_tiles_cover_once_and_make_less_twice(n1, n2, memory, symmetric) -> None:
    """Each strip's rows are made once, and what lies beside it once a strip."""
    n2 = n1 if symmetric else n2
    tile = Recorder(_symmetric(n1) if symmetric else torch.randn(n1, n2, dtype=torch.float64))
    out = torch.full((n1, n2), torch.nan, dtype=torch.float64)
    options = {"bytes_per_entry": 8, "bytes_per_row": 100, "memory": memory, "symmetric": symmetric}
    fill(out, tile, tall=True, **options)
    assert torch.equal(out, tile.matrix)
    cover = tile.cover()
    assert int(cover.max()) == 1
    assert not symmetric or torch.equal((cover + cover.T).clamp(max=1), torch.ones_like(cover))
    beside = [(r.stop - r.start, c.stop - c.start) for r, c in tile.done if not symmetric or r.start != c.start]
    assert all(8 * r * c + 100 * (r + c) <= memory for r, c in beside)


def test_tall_tiles_have_few_strips() -> None:
    """Of what 450 rows and columns need there is room, and for tiles: 400 rows and 50 columns, not 250 and 200."""
    cost = lambda r, c: 100 * (r + c) + r * c  # noqa: E731
    for symmetric in (False, True):
        rows, cols = tile_shape(1600, 1600, cost, 65_000, symmetric, tall=True)
        assert (rows, cols) == (400, 50)
    rows, cols = tile_shape(1600, 1600, cost, 65_000)
    assert rows <= 200


def test_symmetric_tall_tiles_save_work() -> None:
    tile = Recorder(_symmetric(800))
    fill(torch.empty(800, 800).double(), tile, bytes_per_entry=8, bytes_per_row=1, symmetric=True, strips=16, tall=True)
    assert tile.cover().sum().item() / 800**2 == pytest.approx((1 + 1 / 16) / 2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_tiles_may_be_added(symmetric) -> None:
    tile = Recorder(_symmetric(50))
    out = torch.ones(50, 50, dtype=torch.float64)
    fill(out, tile, bytes_per_entry=8, memory=8 * 90, symmetric=symmetric, add=True)
    assert torch.equal(out, 1 + tile.matrix)


def test_long_work_says_how_far_it_is(tmp_path, monkeypatch, caplog) -> None:
    """Tiles of a second each; of a kernel that is resumed only what is left counts."""
    clock = iter(range(1000))
    monkeypatch.setattr(blocks.time, "monotonic", lambda: float(next(clock)))
    matrix = torch.randn(60, 60, dtype=torch.float64)

    def run(stop: int) -> None:
        tile = Recorder(matrix)

        def stopped(rows: slice, cols: slice) -> torch.Tensor:
            if len(tile.done) == stop:
                raise KeyboardInterrupt
            return tile(rows, cols)

        with TileFile(tmp_path / "k.npy", (60, 60), torch.float64, "one") as file:
            fill(file.tensor, stopped, bytes_per_entry=8, memory=8 * 100, done=file, name="Some kernel")

    with caplog.at_level(logging.INFO, "models.blocks"):
        with pytest.raises(KeyboardInterrupt):
            run(24)  # 64 tiles of 8 x 8 or less
        first = [record.message for record in caplog.records]
        caplog.clear()
        run(-1)
    assert first[0].startswith("Some kernel: ")
    assert "of 3600 pairs, about" in first[0]
    assert len(first) == 2  # after 10 and 20 seconds
    second = [record.message for record in caplog.records]
    assert len(second) == 3
    count = int(second[0].split(" of ")[1].split()[0])
    assert count == 3600 - sum(entries for entries in _first_tiles(24))
    share, left = float(second[0].split()[2]), float(second[0].split("about ")[1].split()[0])
    assert left == pytest.approx(10 * (100 - share) / share, rel=0.05)  # ten seconds for that share


def _first_tiles(count: int) -> list[int]:
    shape = tile_shape(60, 60, lambda r, c: 8 * r * c, 8 * 100)
    return [(r.stop - r.start) * (c.stop - c.start) for r, c in list(tiles(60, 60, *shape))[:count]]


def test_chunks_say_how_far_they_are(monkeypatch, caplog) -> None:
    monkeypatch.setattr(blocks, "SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "models.blocks"):
        list(chunks(40, 10, lambda part: None, name="Layers"))
    assert [record.message.split(",")[0] for record in caplog.records] == [
        f"Layers: {share} % of 40 samples" for share in (25, 50, 75)
    ]


def test_a_strip_begins_before_its_tiles_whatever_is_left_of_it(tmp_path) -> None:
    matrix = _symmetric(60)
    for stop in (0, 1, 2, 5, 9):
        path = tmp_path / f"{stop}.npy"
        begun: list[slice] = []
        done = 0

        def tile(rows: slice, cols: slice, stop: int = stop, begun: list[slice] = begun) -> torch.Tensor:
            nonlocal done
            assert begun[-1].start <= rows.start < rows.stop <= begun[-1].stop
            if done == stop:
                raise KeyboardInterrupt
            done += 1
            return matrix[rows, cols]

        options = {"bytes_per_entry": 8, "bytes_per_row": 100, "memory": 6000, "symmetric": True, "tall": True}
        with TileFile(path, (60, 60), torch.float64, "one") as file, pytest.raises(KeyboardInterrupt):
            fill(file.tensor, tile, begin=begun.append, done=file, **options)
        done = -1000
        with TileFile(path, (60, 60), torch.float64, "one") as file:
            fill(file.tensor, tile, begin=begun.append, done=file, **options)
        assert torch.equal(file.tensor, matrix)
        height = begun[0].stop
        assert all(strip == slice(strip.start, min(strip.start + height, 60)) for strip in begun)
        assert all(strip.start % height == 0 for strip in begun)
