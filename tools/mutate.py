"""Do the tests see an error in the theory? python tools/mutate.py [--count 100] [--jobs 2] [--results FILE]

Each mutant (tools/mutants.py) of models/limits, bench/ntk, bench/predict.py and bench/theory is one wrong expression in
a copy of the tree. It first meets its own package's fast tests, the file about it first (60 CPU seconds at most, the
first failure ends it); what survives meets the claims at CPU size. Results are a line each in a file and are read from
there the next time: what was killed stays killed as long as the mutant is the same, what survived is tried again as
soon as a test changes, but for those that equivalent_mutants.json argues to change nothing.
``--table docs/results/mutants.json`` writes the summary; it runs nothing.

Hours of one core in the worst case, never part of CI. The checkout itself is only read.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import Mutant, choose, find

from bench.store import append_line, read_lines

ROOT = Path(__file__).resolve().parents[1]
REASONS = ROOT / "tools" / "equivalent_mutants.json"
SECONDS = 60
"""CPU, for the fast tests of one mutant."""
PATIENCE = 30
"""Of waiting for a process, in multiples of its CPU limit: the machine may be shared."""


@dataclass(frozen=True)
class Package:
    """Sources whose mutants one set of tests is for.

    Attributes:
        sources, left_out: patterns of files; what is left out decides nothing but speed, memory and messages, or runs
            on a GPU.
        share: of the mutants.
        first: (pattern of a source's name, its test files).
        tests: the rest, in order.
        claims: patterns of the claims' names, those that say most about it first.
    """

    sources: Sequence[str]
    left_out: Sequence[str]
    share: float
    first: Sequence[tuple[str, Sequence[str]]]
    tests: Sequence[str]
    claims: Sequence[str]

    def files(self, root: Path) -> list[str]:
        found = sorted(str(path.relative_to(root)) for pattern in self.sources for path in root.glob(pattern))
        return [file for file in found if not any(fnmatch.fnmatch(Path(file).name, p) for p in self.left_out)]

    def tests_for(self, root: Path, file: str) -> list[str]:
        own = [test for pattern, tests in self.first if fnmatch.fnmatch(Path(file).stem, pattern) for test in tests]
        patterns = list(dict.fromkeys([*own, *self.tests]))
        found = (str(path.relative_to(root)) for pattern in patterns for path in sorted(root.glob(pattern)))
        return list(dict.fromkeys(found))


_LIMITS, _THEORY = "tests/models/test_limits", "tests/bench/theory/test_theory_"
PACKAGES = (
    Package(
        ["models/limits/*.py"],
        ["__init__.py", "trace.py", "registry.py", "engines.py", "walk.py", "triton_*.py", "check.py", "infinite.py"],
        0.4,
        [
            ("attention", [f"{_LIMITS}_attention.py"]), ("products", [f"{_LIMITS}_attention.py"]),
            ("own", [f"{_LIMITS}_attention.py", f"{_LIMITS}_branches.py"]),
            ("pooling", [f"{_LIMITS}_branches.py"]), ("po[os]*", [f"{_LIMITS}_images.py"]),
            ("variances", [f"{_LIMITS}_engines.py"]),
            ("quadrature", [f"{_LIMITS}_quadrature.py"]), ("nested", [f"{_LIMITS}_quadrature.py"]),
            ("elementwise", [f"{_LIMITS}_quadrature.py", f"{_LIMITS}_branches.py"]),
            ("closed_forms", [f"{_LIMITS}_closed_forms.py"]), ("kinks", [f"{_LIMITS}_quadrature.py"]),
            ("piecewise", [f"{_LIMITS}_quadrature.py"]),
            ("normalisation", [f"{_LIMITS}_branches.py"]), ("chain", [f"{_LIMITS}_engines.py"]),
            ("tiles", [f"{_LIMITS}_arccos.py", f"{_LIMITS}_engines.py"]), ("dense", [f"{_LIMITS}_engines.py"]),
            ("compiled", [f"{_LIMITS}_engines.py"]), ("structural", [f"{_LIMITS}_images.py"]),
        ],
        [f"{_LIMITS}.py", f"{_LIMITS}_images.py", f"{_LIMITS}_branches.py", f"{_LIMITS}_closed_forms.py",
         f"{_LIMITS}_quadrature.py", f"{_LIMITS}_engines.py", f"{_LIMITS}_attention.py"],
        ["initial-kernel*", "design-*", "mimic-*"],
    ),
    Package(
        ["bench/ntk/*.py"], ["__init__.py", "plan.py", "passes.py", "method.py", "watch.py", "tiles.py"], 0.2,
        [("algebra", ["tests/bench/test_ntk_algebra.py"]), ("operator", ["tests/bench/test_ntk_operator.py"])],
        ["tests/bench/test_ntk.py", "tests/bench/test_ntk_operator.py", "tests/bench/test_ntk_algebra.py"],
        ["initial-kernel*", "path-kernel", "readout-only-*"],
    ),
    Package(
        ["bench/predict.py"], [], 0.1, [], ["tests/bench/test_predict.py", "tests/bench/test_compare.py"],
        ["weight-decay-*", "readout-only-*", "path-kernel"],
    ),
    Package(
        ["bench/theory/*.py"], ["__init__.py", "inputs.py"], 0.3,
        [
            ("eigenlearning", [f"{_THEORY}eigenlearning.py"]), ("solver", [f"{_THEORY}eigenlearning.py"]),
            ("finite_population", [f"{_THEORY}finite_population.py"]), ("hermite*", [f"{_THEORY}hermite.py"]),
            ("random_features", [f"{_THEORY}random_features.py"]), ("bounds", [f"{_THEORY}bounds.py"]),
            ("early_stopping", [f"{_THEORY}bounds.py"]), ("trials", [f"{_THEORY}monte_carlo.py"]),
        ],
        [f"{_THEORY}spectra.py", f"{_THEORY}eigenlearning.py", f"{_THEORY}bounds.py", f"{_THEORY}*.py"],
        ["eigenlearning-*"],
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What became of some tests: "passed", "failed" (by what), or "time" (the limit)."""

    status: str
    by: str
    seconds: float


class Tree:
    """A copy of the checkout in which one mutant at a time lives."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.caches = folder.with_name(folder.name + "-numba")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=root, capture_output=True, check=True, text=True
        ).stdout.split("\0")
        for name in filter(None, listed):
            if (root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)

    @contextlib.contextmanager
    def with_mutant(self, mutant: Mutant | None) -> Iterator[None]:
        if mutant is None:
            yield
            return
        path = self.folder / mutant.file
        source, times = path.read_bytes(), path.stat()
        compiled = b"@njit" in source  # what other files compiled from it is in the cache, and Numba does not notice
        try:
            path.write_bytes(mutant.apply(source))
            if compiled:
                shutil.rmtree(self.caches, ignore_errors=True)
            yield
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if compiled:
                shutil.rmtree(self.caches, ignore_errors=True)

    def test(self, tests: Sequence[str]) -> Run:
        """Pytest, until the first failure."""
        command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        code, out, seconds, late = self._python(command, SECONDS)
        if late:
            return Run("time", f"{SECONDS} CPU seconds", seconds)
        failed = [line for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if code == 0:
            return Run("passed", "", seconds)
        return Run("failed", failed[0].split(" ", 1)[1][:200] if failed else out.strip()[-200:], seconds)

    def claims(self, patterns: Sequence[str], limit: int) -> Run:
        """The claims that match, at CPU size: every verdict as on record and every control rejected?"""
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as runs:
            out = Path(runs) / "claims.json"
            command = ["-m", "bench.claims", *patterns, "--jobs", "1", "--runs", runs, "--json", str(out)]
            code, said, seconds, late = self._python(command, limit)
            if late:
                return Run("time", f"claims: {limit} CPU seconds", seconds)
            if code == 0:
                return Run("passed", "", seconds)
            if code == 2:  # of the command line: a mutant cannot do that, a claim renamed can
                raise SystemExit(f"mutate: {said.strip()}")
            try:
                wrong = [claim for claim in json.loads(out.read_text())["claims"] if not claim["passed"]]
            except (OSError, ValueError, KeyError):
                return Run("failed", f"claims: {said.strip()[-160:]}", seconds)
            return Run("failed", f"claim {wrong[0]['name']}" if wrong else "a measurement", seconds)

    def _python(self, arguments: Sequence[str], limit: int) -> tuple[int, str, float, bool]:
        """Exit code, what it said, CPU seconds, and whether it ran into the limit."""
        environment = {
            **os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "NUMBA_CACHE_DIR": str(self.caches),
        }  # fmt: skip
        with tempfile.TemporaryFile() as out:
            child = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=environment, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
            )  # fmt: skip
            status, used, late = _wait(child.pid, limit * PATIENCE)
            child.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said = out.read().decode(errors="replace")
        late = late or child.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        return child.returncode, said, used, late


def _wait(pid: int, seconds: float) -> tuple[int, float, bool]:
    """Status and CPU seconds of a process; its whole session is killed once it is over or late."""
    until = time.monotonic() + seconds
    late = False
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if not found and time.monotonic() > until:
            late = True
            os.killpg(pid, signal.SIGKILL)
            found, status, usage = os.wait4(pid, 0)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # workers that it left behind
            return status, usage.ru_utime + usage.ru_stime, late
        time.sleep(0.05)


def mutants_of(packages: Sequence[Package], root: Path, count: int) -> list[tuple[Package, Mutant]]:
    """``count`` of them in all, by the packages' shares; the packages take turns."""
    listed = []
    for package in packages:
        found = [mutant for file in package.files(root) for mutant in find(root, file)]
        chosen = choose(found, round(count * package.share))
        listed += [((i + 0.5) / len(chosen), package, mutant) for i, mutant in enumerate(chosen)]
    return [(package, mutant) for _, package, mutant in sorted(listed, key=lambda item: item[0])]


def try_one(tree: Tree, root: Path, package: Package, mutant: Mutant | None, file: str, claims: bool) -> dict[str, Any]:
    """One mutant (None: the tree as it is) before the fast tests of ``file`` and then, if it survived, the claims."""
    with tree.with_mutant(mutant):
        fast = tree.test(package.tests_for(root, file))
        line = {"fast": fast.status, "by": fast.by, "seconds": round(fast.seconds, 1)}
        if fast.status == "failed" or not claims:
            return {**line, "killed": fast.status == "failed"}
        spent = 0.0
        for patterns, limit in ((package.claims, 600), (["*"], 3600)):
            run = tree.claims(patterns, limit)
            spent += run.seconds
            if run.status != "passed":
                break
        return {
            **line, "claims": run.status, "by": run.by, "claim_seconds": round(spent, 1),
            "killed": run.status == "failed",  # what only takes longer is not known to be wrong
        }  # fmt: skip


def digest(root: Path) -> str:
    """Of all tests and claims: a survivor is tried again when they change."""
    files = sorted([*root.glob("tests/**/*.py"), *root.glob("bench/claims/**/*.py"), *root.glob("bench/studies/*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def read(results: Path) -> dict[str, dict[str, Any]]:
    """name -> its last line."""
    return {line["name"]: line for line in read_lines(results)}


def still_counts(line: dict[str, Any] | None, tests: str, claims: bool, argued: bool = False) -> bool:
    """Whether a mutant need not be tried (again); `argued`: a reason is on record why it changes nothing."""
    if line is None:
        return False
    return line["killed"] or argued or (line["tests"] == tests and ("claims" in line or not claims))


def reasons_on_record() -> dict[str, str]:
    return json.loads(REASONS.read_text()) if REASONS.is_file() else {}


def table(packages: Sequence[Package], root: Path, count: int, known: dict[str, Any], command: str) -> dict[str, Any]:
    """The summary: how many of each package and kind were killed, and what survived, each with its reason."""
    reasons = reasons_on_record()
    rows = [(m, known[m.name]) for _, m in mutants_of(packages, root, count) if m.name in known]
    killed = sum(line["killed"] for _, line in rows)

    def counts(names: Sequence[str]) -> dict[str, Any]:
        tried, dead = Counter(names), Counter(n for n, (_, line) in zip(names, rows, strict=True) if line["killed"])
        return {name: {"tried": tried[name], "killed": dead[name]} for name in sorted(tried)}

    survived = [
        {"name": m.name, "kind": m.kind, "claims_tried": "claims" in line, "reason": reasons.get(m.name, "")}
        for m, line in rows if not line["killed"]
    ]  # fmt: skip
    equivalent = sum(bool(row["reason"]) for row in survived)
    return {
        "command": command, "planned": count, "tried": len(rows), "killed": killed,
        "killed_by_fast_tests": sum(line["fast"] == "failed" for _, line in rows),
        "killed_share": round(killed / max(1, len(rows)), 4),
        "killed_share_without_equivalent": round(killed / max(1, len(rows) - equivalent), 4),
        "cpu_seconds": round(sum(line["seconds"] + line.get("claim_seconds", 0) for _, line in rows)),
        "packages": counts(["/".join(m.file.split("/")[:2]) for m, _ in rows]),
        "kinds": counts([m.kind for m, _ in rows]),
        "survived": survived,
        "mutants": [
            {"name": m.name, "kind": m.kind, "killed": line["killed"], "by": line["by"],
             "seconds": line["seconds"] + line.get("claim_seconds", 0)} for m, line in rows
        ],
    }  # fmt: skip


def main(arguments: Sequence[str], packages: Sequence[Package] = PACKAGES, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python tools/mutate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="how many mutants")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that are tested at a time")
    parser.add_argument("--results", type=Path, default=root / "runs" / "mutants.jsonl", help="a line each")
    parser.add_argument("--no-claims", action="store_true", help="only the fast tests")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="mutants whose name matches one")
    parser.add_argument("--list", action="store_true", help="only name the mutants")
    parser.add_argument("--table", type=Path, help="write the summary of the results there; runs nothing")
    chosen = parser.parse_args(arguments)
    every = mutants_of(packages, root, chosen.count)
    todo = [item for item in every if any(fnmatch.fnmatchcase(item[1].name, pattern) for pattern in chosen.only)]
    if chosen.list:
        print("\n".join(f"{mutant.kind}: {mutant.name}" for _, mutant in todo))
        return 0
    known = read(chosen.results)
    if chosen.table:
        command = f"python tools/mutate.py --count {chosen.count}{' --no-claims' if chosen.no_claims else ''}"
        chosen.table.write_text(json.dumps(table(packages, root, chosen.count, known, command), indent=1) + "\n")
        return 0
    tests, reasons = digest(root), reasons_on_record()
    todo = [
        (package, mutant)
        for package, mutant in todo
        if not still_counts(known.get(mutant.name), tests, not chosen.no_claims, mutant.name in reasons)
    ]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        trees = [Tree(Path(folder) / f"tree-{i}", root) for i in range(chosen.jobs)]
        free = list(trees)
        for package in {id(package): package for package, _ in todo}.values():
            unchanged = try_one(trees[0], root, package, None, package.files(root)[0], False)
            print(f"unchanged {package.sources[0]}: {unchanged['fast']} in {unchanged['seconds']} s", flush=True)
            if unchanged["fast"] == "failed":
                print(f"mutate: the tests fail without any mutant: {unchanged['by']}", file=sys.stderr)
                return 2
        if todo and not chosen.no_claims:
            run = trees[0].claims(["*"], 3600)
            print(f"unchanged, claims: {run.status} in {run.seconds:.0f} s", flush=True)
            if run.status != "passed":
                print(f"mutate: the claims fail without any mutant: {run.by}", file=sys.stderr)
                return 2

        def one(item: tuple[Package, Mutant]) -> None:
            package, mutant = item
            tree = free.pop()
            try:
                line = try_one(tree, root, package, mutant, mutant.file, not chosen.no_claims)
            finally:
                free.append(tree)
            line = {"name": mutant.name, "kind": mutant.kind, **line, "tests": tests}
            append_line(chosen.results, line)
            print(f"{'killed' if line['killed'] else 'SURVIVED'} {mutant.name} [{line['by']}]", flush=True)

        list(pool.map(one, todo))
    known = read(chosen.results)
    survived = [mutant.name for _, mutant in every if mutant.name in known and not known[mutant.name]["killed"]]
    print(f"{len(every)} mutants, {len(survived)} survived:", *survived, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
