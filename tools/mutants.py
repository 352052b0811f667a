"""Mutants of theory code: one deliberate error each, of the kinds that a derivation or a transcription makes.

A mutant is one expression of a source file, replaced. Which ones are made is decided by a hash of what they are, with
as many functions and kinds of error as possible: nobody chose them to be found.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Change = Callable[[ast.AST], "tuple[ast.AST, str] | None"]
"""The node that another one is replaced by, and the kind of error; None where the node is of another form."""


@dataclass(frozen=True)
class Mutant:
    """One expression replaced.

    Attributes:
        file: relative to the root, with slashes.
        function: the innermost one, with its class.
        kind: of error, as in ``KINDS``.
        before, after: the expression.
        place: which of the equal replacements of that function, from 0.
        line: of the file as it is now; no part of what the mutant is.
        start, end: bytes of the file.
    """

    file: str
    function: str
    kind: str
    before: str
    after: str
    place: int
    line: int = field(compare=False)
    start: int = field(compare=False)
    end: int = field(compare=False)

    @property
    def name(self) -> str:
        """The same as long as the function's code around it is: lines may move."""
        again = f" ({self.place + 1})" if self.place else ""
        return f"{self.file}::{self.function}: {self.before} -> {self.after}{again}"

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + f"({self.after})".encode() + source[self.end :]


def _negated(node: ast.AST) -> tuple[ast.AST, str] | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right), "sign"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        return node.operand, "sign"
    return None


def _doubled(node: ast.AST) -> tuple[ast.AST, str] | None:
    """2 x -> 4 x, x / 2 -> x / 4."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        if _number(node.right):
            return ast.BinOp(node.left, node.op, _twice(node.right)), "factor of 2"
        if _number(node.left):
            return ast.BinOp(_twice(node.left), node.op, node.right), "factor of 2"
    return None


def _dropped_term(node: ast.AST) -> tuple[ast.AST, str] | None:
    """a + b -> a; t.add_(b) -> t: a bias, a layer's share, a correction that is missing."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return node.left, "missing term"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("add", "add_"):
        return node.func.value, "missing term"
    return None


def _dropped_factor(node: ast.AST) -> tuple[ast.AST, str] | None:
    """a b -> a, a / b -> a."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div) and not _number(node.right):
        return node.left, "missing factor"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FACTORS:
        return node.func.value, "missing factor"
    return None


def _wrong_power(node: ast.AST) -> tuple[ast.AST, str] | None:
    """x^2 -> x, sqrt(x) -> x: a deviation where a variance is meant, or the other way round."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return node.left, "wrong power"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("square", "sqrt", "square_", "sqrt_") and not node.args:
            return node.func.value, "wrong power"
        if node.func.attr == "sqrt" and len(node.args) == 1:  # math.sqrt(x)
            return node.args[0], "wrong power"
    return None


def _transposed(node: ast.AST) -> tuple[ast.AST, str] | None:
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
        return node.value, "transposed"
    return None


def _swapped(node: ast.AST) -> tuple[ast.AST, str] | None:
    """f(a, b, ...) -> f(b, a, ...) of two names or attributes."""
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        first, second, *others = node.args
        plain = all(isinstance(arg, ast.Name | ast.Attribute) for arg in (first, second))
        if plain and ast.dump(first) != ast.dump(second) and ast.unparse(node.func) not in ("isinstance", "getattr"):
            return ast.Call(node.func, [second, first, *others], node.keywords), "swapped arguments"
    return None


def _off_by_one(node: ast.AST) -> tuple[ast.AST, str] | None:
    """range(..., n) -> range(..., n - 1); x[1:] -> x[:], x[:-1] -> x[:]: a layer or a degree too many or too few."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and node.args:
        place = min(1, len(node.args) - 1)
        args = list(node.args)
        args[place] = ast.BinOp(args[place], ast.Sub(), ast.Constant(1))
        return ast.Call(node.func, args, []), "off by one"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        bounds = node.slice
        if (bounds.lower is None) != (bounds.upper is None) and ast.unparse(bounds).strip(":") in ("1", "-1"):
            return ast.Subscript(node.value, ast.Slice(None, None, bounds.step), node.ctx), "off by one"
    return None


def _summed(node: ast.AST) -> tuple[ast.AST, str] | None:
    """x.mean(...) -> x.sum(...) and back."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("mean", "sum"):
        other = ast.Attribute(node.func.value, "sum" if node.func.attr == "mean" else "mean", ast.Load())
        return ast.Call(other, node.args, node.keywords), "sum for mean"
    return None


_FACTORS = ("mul", "mul_", "div", "div_", "neg_", "clamp_min_")
CHANGES: tuple[Change, ...] = (
    _negated, _doubled, _dropped_term, _dropped_factor, _wrong_power, _transposed, _swapped, _off_by_one, _summed,
)  # fmt: skip


def find(root: Path, file: str) -> list[Mutant]:
    """All mutants of a file: of what computes, not of messages, refusals, annotations and decorators."""
    source = (root / file).read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for function, node in _expressions(ast.parse(source), ""):
        for change in CHANGES:
            changed = change(node)
            if changed is None:
                continue
            after, kind = changed
            texts = ast.unparse(node), ast.unparse(ast.fix_missing_locations(after))
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            found.append(Mutant(file, function, kind, *texts, seen[(function, *texts)], node.lineno, start, end))
            seen[(function, *texts)] += 1
    return found


def choose(mutants: Sequence[Mutant], count: int) -> list[Mutant]:
    """So many of them: always one of the function, then of the kind, of which fewest were taken; else by hash."""
    left = sorted(mutants, key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())
    functions: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    chosen = []
    while left and len(chosen) < count:
        best = min(left, key=lambda m: (functions[m.file, m.function], kinds[m.kind]))
        left.remove(best)
        functions[best.file, best.function] += 1
        kinds[best.kind] += 1
        chosen.append(best)
    return chosen


def _expressions(node: ast.AST, function: str) -> Iterator[tuple[str, ast.expr]]:
    """Every expression inside a function, with the function's name."""
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "annotation", "returns", "args") and not isinstance(node, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and all(isinstance(s, ast.Raise) for s in child.body) and not child.orelse:
                continue  # a refusal
            inner = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{function}.{child.name}".lstrip(".")
            if isinstance(child, ast.expr) and function:
                yield function, child
            yield from _expressions(child, inner)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0


def _twice(node: ast.AST) -> ast.Constant:
    assert isinstance(node, ast.Constant)
    return ast.Constant(2 * node.value)
