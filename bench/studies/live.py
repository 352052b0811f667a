"""While a cell trains: its networks' losses, and how the kernel of one a batch moves, aligns and explains its network.

Of what the comparisons say at the end, the part that can be known before: the after-kernel is not, so the match is that
of the kernel of the moment to the network of the moment, and that of the linearised network, after the very same steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from bench.compare.alignment import LEAST, alignment
from bench.compare.metrics import r2, relative_error
from bench.moment import Moment
from bench.networks import initialised
from bench.ntk import empirical_ntk
from bench.ntk.algebra import Spectrum, as_matrix, spectrum
from bench.predict import KernelPredictor, course
from bench.studies.cell import Cell
from bench.trained import Member, label_set

log = logging.getLogger(__name__)

Row = Mapping[str, float]
Log = Callable[[Mapping[str, Row]], None]
"""Told what was seen at one look: member's name -> name of a quantity -> number; ``steps`` and ``time`` among them."""

SHOWN = 8
"""Members of a cell whose curves are logged, the first ones: more lines than that nobody reads."""
APART = 1.25
"""Ratio of the iterations of two looks."""
SECONDS = 30.0
"""After which a look is due in any case."""
SHARE = 0.05
"""Of the training's time that looking may take; a kernel that would take more is left out, but for the first two: what
the first takes is mostly loading, and only the second says what a kernel costs."""
ROWS = 2048
"""Points times outputs at most of the training points whose kernel is looked at."""
HELD_OUT = 64
"""Test points, the first ones."""


class Watcher:
    """For ``Trainer.parts``: a ``Live`` for each batch of the cell's members. ``seconds``: of CPU that they took."""

    def __init__(self, cell: Cell, log: Log, share: float = SHARE) -> None:
        self.cell, self.log, self.share = cell, log, share
        self.shown = {member.name for member in cell.members[:SHOWN]}
        self.seconds = 0.0

    def __call__(self, batch: Sequence[Member]) -> Live:
        return Live(self, batch)


class Live:
    """Watches one batch; see ``bench.moment.Watch``.

    Per member: ``loss`` (relative train loss, at the time ``loss_time``). Of the first member of the batch, in float64,
    on all training points if they are few enough and ``HELD_OUT`` test points:

    - ``kernel_motion``: ``|K_t - K_0| / |K_0|`` on the training points; ``kernel_alignment_held_out``: centred, with
      the clean labels of the test points;
    - ``match``: R2, on the test points, of regression with K_t on the network's own outputs f_t at the training points,
      against f_t: how well the after-kernel would explain the network if training ended now;
    - ``linearised_match``: R2 of the network linearised at its start, after the same steps, against f_t;
    - ``test_error`` of f_t against the clean labels, relative.
    """

    def __init__(self, watcher: Watcher, batch: Sequence[Member]) -> None:
        self.watcher = watcher
        self.batch = batch
        self.shown = {place for place, member in enumerate(batch) if member.name in watcher.shown}
        self.first = _First(watcher.cell, batch[0]) if 0 in self.shown else None
        self.next, self.last, self.began = 0, time.monotonic(), time.perf_counter()
        self.looks, self.spent, self.cost = 0, 0.0, 0.0

    def due(self, iteration: int) -> bool:
        return iteration >= self.next or (iteration % 32 == 0 and time.monotonic() - self.last > SECONDS)

    def look(self, moment: Moment) -> None:
        self.next, self.last = math.ceil(max(1, self.next) * APART), time.monotonic()
        started = time.process_time()
        if rows := self._rows(moment):
            self.watcher.log(rows)
        self.watcher.seconds += time.process_time() - started

    def _rows(self, moment: Moment) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for row, place in enumerate(moment.members):
            if place not in self.shown:
                continue
            taken = moment.steps[row]
            seen = {"steps": float(len(taken)), "time": float(taken.sum())}
            seen |= {"loss": float(moment.losses[row]), "loss_time": float(moment.loss_times[row])}
            if place == 0 and self.first is not None and self._affordable():
                seen |= self._of_first(
                    {n: value[row] for n, value in moment.params.items()}, taken, moment.momenta[row]
                )
            rows[self.batch[place].name] = {name: value for name, value in seen.items() if math.isfinite(value)}
        return rows

    def _of_first(self, params: Mapping[str, Tensor], steps: np.ndarray, momenta: np.ndarray) -> Row:
        assert self.first is not None
        started = time.perf_counter()
        try:
            return self.first.look(params, steps, momenta)
        except Exception as problem:  # memory, or a network without a kernel: the training must go on
            self.first = None
            log.warning("The kernel is not watched while training (%s).", " ".join(str(problem).split())[:300])
            return {}
        finally:
            self.cost = time.perf_counter() - started
            self.spent += self.cost if self.looks else 0.0
            self.looks += 1

    def _affordable(self) -> bool:
        within = self.spent + self.cost <= self.watcher.share * (time.perf_counter() - self.began)
        return within or self.looks < 2


@dataclass(frozen=True)
class _Start:
    """Of the network at its start: its kernel, [n + p, n + p, c, c], the spectrum of its training block (where the
    linearised network is looked at), and outputs z_0 and f_0, [n + p, c]."""

    kernel: Tensor
    found: Spectrum | None
    z: Tensor
    f: Tensor


class _First:
    """The network of a batch whose kernel is looked at."""

    def __init__(self, cell: Cell, member: Member) -> None:
        self.trainer = cell.trainer
        net, device = cell.trainer.network(cell.model), cell.trainer.torch_device()
        self.gamma = cell.trainer.gamma(net, member.richness)
        self.initial = {name: value.to(device) for name, value in initialised(net, [member.init_seed])[0].items()}
        self.net = net.double().to(device)
        self.task, self.device = cell.tasks[member.data], device
        self.target = member.target
        self.start: _Start | None = None

    def look(self, params: Mapping[str, Tensor], steps: np.ndarray, momenta: np.ndarray) -> Row:
        if self.start is None:
            z = self._outputs(self.initial)
            f = torch.zeros_like(z) if self.trainer.centred else z / self.gamma
            kernel, n = self._kernel(self.initial), len(self._points()[0])
            plain = n == self.task.n_train and self._is_plain()
            self.start = _Start(kernel, spectrum(as_matrix(kernel[:n, :n])) if plain else None, z, f)
        start, now = self.start, {**self.initial, **params}
        z, kernel = (self._outputs(now), self._kernel(now)) if len(steps) else (start.z, start.kernel)
        f = start.f + (z - start.z) / self.gamma
        n = len(self._points()[0])
        task = label_set(self.task, self.target, z.shape[1])
        y = task.y_test[:HELD_OUT].to(f)
        seen = {
            "kernel_motion": float((kernel[:n, :n] - start.kernel[:n, :n]).norm() / start.kernel[:n, :n].norm()),
            "test_error": relative_error(f[n:], y, self.trainer.loss),
        }
        if len(y) >= LEAST:
            held_out = kernel[n:, n:].diagonal(dim1=2, dim2=3).sum(-1)  # the trace over outputs
            seen["kernel_alignment_held_out"] = alignment(held_out, y)
        if n == task.n_train:  # regression on some of the points explains nothing
            fitted = KernelPredictor(kernel[:n, :n], base="init").fit(f[:n], start.f[:n])
            seen["match"] = r2(fitted.predict(kernel[n:, :n], start.f[n:]), f[n:])
            if len(steps) and start.found is not None:
                labels, at = task.y_train.to(f), [len(steps)]
                linear = course(start.kernel[:, :n], labels, steps, at, momenta, start.f, start.found)[0]
                seen["linearised_match"] = r2(linear[n:], f[n:])
        return seen

    def _is_plain(self) -> bool:
        """Whether the linearised network's way is known by the network's steps."""
        trainer = self.trainer
        return (trainer.loss, trainer.optimiser, trainer.momentum, trainer.weight_decay) == ("mse", "gd", 0, 0)

    def _points(self) -> tuple[Tensor, Tensor]:
        n = max(1, min(self.task.n_train, ROWS // self.task.outputs))
        x, x_test = (values.to(self.device) for values in (self.task.x_train[:n], self.task.x_test[:HELD_OUT]))
        return x, x_test

    def _outputs(self, params: Mapping[str, Tensor]) -> Tensor:
        """z on the points, [n + p, c], in float64."""
        double = {name: value.double() for name, value in params.items()}
        with torch.no_grad():
            return functional_call(self.net, double, (torch.cat(self._points()).double(),))

    def _kernel(self, params: Mapping[str, Tensor]) -> Tensor:
        """[n + p, n + p, c, c]: everything that a look asks of the kernel, from one pass."""
        stacked = {name: value[None] for name, value in params.items()}
        found = empirical_ntk(self.net, torch.cat(self._points()), dtype=torch.float64, params=stacked)
        assert isinstance(found, Tensor)
        return found[0]
