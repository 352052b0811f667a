"""The mutation check (tools/): on a package of one function, and which mutants there are of the theory itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import mutants  # noqa: E402
import mutate  # noqa: E402

SOURCE = '''"""A kernel."""


def kernel(x, y, depth, bias=0.5):
    """x y + bias, again and again: 1 + 1 in a docstring is no code."""
    if depth < 0:
        raise ValueError(f"depth {depth + 1} must be at least 0")
    total = x * y + bias**2
    for _ in range(depth):
        total = 2 * total
    return total


def nothing(x):
    return x - 0.0 * 3
'''
TEST = """
from tiny.kernel import kernel, nothing


def test_kernel():
    assert kernel(3, 5, 2) == 61
    assert nothing(4) == 4
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take most of the time
    root = tmp_path / "repository"
    (root / "tiny").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "tiny" / "__init__.py").touch()
    (root / "tiny" / "kernel.py").write_text(SOURCE)
    (root / "tests" / "test_kernel.py").write_text(TEST)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


PACKAGES = [mutate.Package(["tiny/*.py"], ["__init__.py"], 1.0, [], ["tests/test_*.py"], [])]


def test_each_kind_of_error_is_made_where_it_can_be(tiny: Path) -> None:
    found = {(m.before, m.after): m.kind for m in mutants.find(tiny, "tiny/kernel.py")}
    assert found == {
        ("x * y + bias ** 2", "x * y - bias ** 2"): "sign",
        ("x * y + bias ** 2", "x * y"): "missing term",
        ("x * y", "x"): "missing factor",
        ("bias ** 2", "bias"): "wrong power",
        ("range(depth)", "range(depth - 1)"): "off by one",
        ("2 * total", "4 * total"): "factor of 2",
        ("2 * total", "2"): "missing factor",
        ("x - 0.0 * 3", "x + 0.0 * 3"): "sign",
        ("0.0 * 3", "0.0 * 6"): "factor of 2",
    }
    source = (tiny / "tiny" / "kernel.py").read_bytes()
    for mutant in mutants.find(tiny, "tiny/kernel.py"):
        changed = mutant.apply(source)
        assert changed != source
        assert len(changed.splitlines()) == len(source.splitlines())
        ast.parse(changed)


@pytest.mark.slow
def test_killed_survived_resumed_and_summed_up(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the two mutants that change nothing survive; the checkout is as it was; a new test gives them a new try."""
    before = {path: path.read_bytes() for path in tiny.rglob("*.py")}
    results, arguments = tiny / "results.jsonl", ["--count", "9", "--no-claims", "--results"]
    assert mutate.main([*arguments, str(results)], PACKAGES, tiny) == 0
    lines = list(mutate.read(results).values())
    assert len(lines) == 9
    survivors = sorted(line["name"] for line in lines if not line["killed"])
    assert survivors == [
        "tiny/kernel.py::nothing: 0.0 * 3 -> 0.0 * 6",
        "tiny/kernel.py::nothing: x - 0.0 * 3 -> x + 0.0 * 3",
    ]
    assert all("test_kernel" in line["by"] for line in lines if line["killed"])
    assert {path: path.read_bytes() for path in tiny.rglob("*.py")} == before

    results.write_text(results.read_text() + '{"name": "half a li')
    capsys.readouterr()
    assert mutate.main([*arguments, str(results)], PACKAGES, tiny) == 0
    assert "killed tiny" not in capsys.readouterr().out  # nothing to do
    (tiny / "tests" / "test_more.py").write_text("def test_more():\n    pass\n")
    assert mutate.main([*arguments, str(results)], PACKAGES, tiny) == 0
    assert capsys.readouterr().out.count("SURVIVED") == 2  # tried again

    assert mutate.main([*arguments, str(results), "--table", str(tiny / "table.json")], PACKAGES, tiny) == 0
    table = json.loads((tiny / "table.json").read_text())
    assert (table["tried"], table["killed"], table["killed_by_fast_tests"]) == (9, 7, 7)
    assert [row["name"] for row in table["survived"]] == survivors
    assert table["kinds"]["sign"] == {"tried": 2, "killed": 1}


@pytest.mark.slow
def test_tests_that_fail_by_themselves_are_no_judge(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "tests" / "test_kernel.py").write_text(TEST.replace("61", "62"))
    assert mutate.main(["--results", str(tiny / "r.jsonl")], PACKAGES, tiny) == 2
    assert "without any mutant" in capsys.readouterr().err


def test_the_theory_has_mutants_of_every_kind_in_every_package() -> None:
    chosen = mutate.mutants_of(mutate.PACKAGES, ROOT, 100)
    assert len({mutant.name for _, mutant in chosen}) == 100
    assert {mutant.kind for _, mutant in chosen} == {
        "sign", "factor of 2", "missing term", "missing factor", "wrong power", "transposed", "swapped arguments",
        "off by one", "sum for mean",
    }  # fmt: skip
    places = {mutant.file.rsplit("/", 1)[0] for _, mutant in chosen}
    assert places == {"models/limits", "bench/ntk", "bench", "bench/theory"}
    for package in mutate.PACKAGES:
        assert all((ROOT / test).is_file() for file in package.files(ROOT) for test in package.tests_for(ROOT, file))
        assert all(package.tests_for(ROOT, file) for file in package.files(ROOT))
