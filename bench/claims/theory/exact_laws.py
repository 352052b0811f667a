"""Laws that hold to rounding or to the step size, whatever the network learns: anchors of the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.claims.claim import Claim, Control, Measurement, Records, Size, Statistics, Window
from bench.claims.theory import REDRAWN, RESIZED
from bench.studies.edge import Edge, edge
from bench.studies.exactness import Exactness, exactness
from bench.studies.kernel_course import KernelCourse, PathKernel, kernel_course, path_kernel
from bench.studies.scored_networks import ScoredNetworks, scored_networks
from bench.studies.study import Request
from bench.studies.tautology import Tautology, tautology

Statistic = Callable[[Records], Statistics]
Seeds = tuple[int, ...]

IDENTITY = "An identity: every seed by itself, so no size; the controls miss by orders of magnitude."
CALIBRATION = "Windows from seeds 100 to 103, 2026-11-25."


def _array(label: str, name: str) -> Statistic:
    return lambda records: {label: records[0].arrays[name]}


def _column(name: str, *columns: tuple[str, int]) -> Statistic:
    return lambda records: {label: records[0].arrays[name][:, column] for label, column in columns}


def _stationary(richness: float | str, centred: bool, decay: float) -> Callable[[Size, Seeds], list[Request]]:
    def requests(size: Size, seeds: Seeds) -> list[Request]:
        width, n = (64, 128) if size == "cpu" else (512, 512)
        return [Request(exactness, Exactness(richness, centred, width, n, weight_decay=decay, seeds=seeds))]

    return requests


def _kinked(size: Size, seeds: Seeds) -> list[Request]:
    width, n = (64, 128) if size == "cpu" else (512, 512)
    return [Request(exactness, Exactness("ntk", True, width, n, power=1, max_steps=600,
                                         seeds=seeds))]  # fmt: skip


def _exact(
    name: str, words: str, richness: float | str, centred: bool, wrong: Sequence[str], decay: float = 3e-3
) -> Claim:
    label = "relative squared error"
    return Claim(
        name=f"weight-decay-exact-{name}",
        statement=f"At a stationary point with weight decay a relu^2 network is regression with its own K_T and ridge "
        f"gamma^2 N L lambda, to 1e-10; {words}.",
        source="Euler's theorem for homogeneous functions; Lauditi, Bordelon and Pehlevan 2025 at infinite width",
        kind="theorem",
        requests=_stationary(richness, centred, decay),
        statistics=_array(label, "exact"),
        windows={label: Window(high=1e-10, every=True)},
        controls=[Control(what, _array(label, what)) for what in wrong],
        power=IDENTITY,
        seeds=4,
    )


def _edge(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(edge, Edge((1.9, 2.1, 2.5), 2048 if size == "cpu" else 8192, seeds=seeds))]


def _catapult(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(edge, Edge((1.5, 2.5), 512 if size == "cpu" else 4096, 150, seeds=seeds))]


def _caught(column: int) -> Statistic:
    return lambda records: {
        "lambda_max after / before": records[0].arrays["lambda"][:, column],
        "diverged": records[0].arrays["diverged"][:, column],
    }


def _courses(size: Size, seeds: Seeds) -> list[Request]:
    width = 256 if size == "cpu" else 2048
    return [Request(kernel_course, KernelCourse(richness, width=width, seeds=seeds)) for richness in (1.0, 10.0)]


def _course(study: int, level: int, of: Sequence[tuple[str, str]]) -> Statistic:
    return lambda records: {label: records[study].arrays[name][:, level] for label, name in of}


def _paths(size: Size, seeds: Seeds) -> list[Request]:
    width, n = (128, 48) if size == "cpu" else (1024, 256)
    return [Request(path_kernel, PathKernel(width=width, n_train=n, seeds=seeds))]


def _path(array: str) -> Statistic:
    def statistics(records: Records) -> Statistics:
        error = records[0].arrays[array]
        return {"error at c = .1": error[:, 1], "error at c = .3 / at c = .1": error[:, 0] / error[:, 1]}

    return statistics


def _readout(size: Size, seeds: Seeds) -> list[Request]:
    trainer = {"richness": "ntk", "readout_only": True, "dtype": "float64", "tolerance": 1e-2}
    compare = ("network", "linearised", "initial")
    width = 256 if size == "cpu" else 4096
    return [Request(scored_networks, ScoredNetworks("staircase", width, trainer, compare, seeds))]


def _distance(predictor: str) -> Statistic:
    return lambda records: {"|p - f_T| / |f_T|": records[0].arrays[f"{predictor}/relative_l2"].mean(1)}


def _learner(size: Size, seeds: Seeds) -> list[Request]:
    width = 256 if size == "cpu" else 2048
    task = {"d": 30, "k": 2, "n_train": 200}
    compare = ("network", "after", "initial", "margin")
    return [Request(scored_networks, ScoredNetworks("parity", width, {"richness": 1.0}, compare, seeds, task))]


def _class_error(after: str, initial: str = "") -> Statistic:
    named = {"after": after} | ({"initial": initial} if initial else {})
    return lambda records: {label: records[0].arrays[f"{p}/class_error"].mean(1) for label, p in named.items()}


def _tautologies(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(tautology, Tautology(seeds, width=256 if size == "cpu" else 2048))]


def _learns_better(name: str, how: str, after: str, initial: str) -> Claim:
    return Claim(
        name=name,
        statement=f"{how} with the after-kernel solves parity of two (d = 30, 200 points): class error below .05, "
        "where the initial kernel's is above .17.",
        source="Long 2021",
        kind="calibrated",
        requests=_learner,
        statistics=_class_error(after, initial),
        windows={"after": Window(high=0.05, gap=0.1), "initial": Window(low=0.17, gap=0.15)},
        controls=[Control("the initial kernel in place of the after-kernel", _class_error(initial))],
        power="Seeds scatter by .01 and .035: with sixteen, .02 and .05 beyond the windows are refuted.",
        seeds=16,
        calibration=f"{CALIBRATION} {REDRAWN} {RESIZED}",
    )


CLAIMS = [
    _exact("ntk", "gamma = 1, centred", "ntk", True, ("no ridge", "wrong degree", "initial kernel", "base zero"), 1e-2),
    _exact("rich", "gamma not 1, centred", 0.3, True,
           ("no gamma^2", "no ridge", "wrong degree", "initial kernel", "base zero")),
    _exact("uncentred", "gamma not 1, not centred", 0.3, False,
           ("no gamma^2", "no ridge", "wrong degree", "initial kernel")),
    Claim(
        name="edge-of-stability",
        statement="A step of c / lambda_max multiplies the residual's top mode by |1 - c|, to 2 %: it shrinks below "
        "c = 2 and grows above.",
        source="Lee et al. 2019, section 3; wide networks are linear",
        kind="theorem",
        requests=_edge,
        statistics=_column("ratio", ("c = 1.9", 0), ("c = 2.1", 1)),
        windows={"c = 1.9": Window(0.882, 0.918, every=True), "c = 2.1": Window(1.078, 1.122, every=True)},
        controls=[Control("c = 2.5 in place of 2.1", _column("ratio", ("c = 1.9", 0), ("c = 2.1", 2)))],
        power="Every seed, within 2 %: .897 to .914 and 1.098 to 1.113 in 100 draws; c = 2.5 gives 1.5.",
        seeds=5,
    ),
    Claim(
        name="catapult",
        statement="With c = 2.5 training does not diverge, and ends at a lambda_max less than .8 of that before.",
        source="Lewkowycz et al. 2020",
        kind="calibrated",
        requests=_catapult,
        statistics=_caught(1),
        windows={"lambda_max after / before": Window(high=0.8, every=True), "diverged": Window(high=0.5, every=True)},
        controls=[Control("c = 1.5, below the edge", _caught(0))],
        power="Every seed: .56 to .60 in 100 draws, none diverged; 1.01 below the edge.",
        calibration=CALIBRATION,
        seeds=5,
    ),
    Claim(
        name="path-kernel",
        statement="f_T - f_0 is the sum of every step's kernel times its residual, up to an error in proportion to "
        "the step.",
        source="Domingos 2020, for gradient descent",
        kind="calibrated",
        requests=_paths,
        statistics=_path("error"),
        windows={"error at c = .1": Window(high=0.02, every=True),
                 "error at c = .3 / at c = .1": Window(2.0, 5.0, every=True)},
        controls=[Control("the initial kernel at every step", _path("frozen"))],
        power="Every seed: .004 to .010 and 2.7 to 3.0 in 100 draws.",
        calibration=CALIBRATION,
        seeds=5,
    ),
    Claim(
        name="kernel-direction-is-early",
        statement="At a tenth of the loss the kernel's direction has gone three quarters of its way at least, and "
        "further than its size by a tenth (richness 1).",
        source="Fort et al. 2020 (early) and Vyas et al. 2022 (it goes on), reconciled",
        kind="calibrated",
        requests=_courses,
        statistics=lambda records: {
            "direction": records[0].arrays["direction"][:, 1],
            "direction - size": records[0].arrays["direction"][:, 1] - records[0].arrays["size"][:, 1],
        },
        windows={"direction": Window(low=0.75, gap=0.3), "direction - size": Window(low=0.1, gap=0.3)},
        controls=[Control("the size in place of the direction", _course(0, 1, [("direction", "size")]))],
        power="Seeds scatter by .02 in direction and .04 in the difference.",
        calibration=CALIBRATION,
    ),
    Claim(
        name="kernel-turns-silently",
        statement="With small outputs (richness 10) the kernel's direction has gone .45 of its way while nine tenths "
        "of the loss are left, and its size less than .17.",
        source="Atanasov, Bordelon and Pehlevan 2021",
        kind="calibrated",
        requests=_courses,
        statistics=_course(1, 0, [("direction", "direction"), ("size", "size")]),
        windows={"direction": Window(low=0.45, gap=0.3), "size": Window(high=0.17, gap=0.3)},
        controls=[Control("richness 1", _course(0, 0, [("direction", "direction"), ("size", "size")]))],
        power="Seeds scatter by .06 in direction and .02 in size: of a size of 1e-3, .12 beyond is refuted.",
        alpha=1e-3,
        calibration=f"{CALIBRATION} {REDRAWN} {RESIZED}",
    ),
    Claim(
        name="readout-only-is-linear",
        statement="Training the read-out alone is linear: K_0 with the very same steps gives the network, to 1e-8.",
        source="the model is linear in its read-out",
        kind="theorem",
        requests=_readout,
        statistics=_distance("linearised"),
        windows={"|p - f_T| / |f_T|": Window(high=1e-8, every=True)},
        controls=[Control("the same kernel trained to the end", _distance("initial"))],
        power=IDENTITY,
        seeds=4,
    ),
    Claim(
        name="tautology-of-the-trained-base",
        statement="On top of the trained network as base even an unrelated Laplace kernel scores R2 above .999.",
        source="this suite: why the base of a predictor is f_0 or zero, never f_T",
        kind="calibrated",
        requests=_tautologies,
        statistics=_array("R2", "trained"),
        windows={"R2": Window(low=0.999, every=True)},
        controls=[Control("the same kernel on base zero", _array("R2", "zero"))],
        power="In every run; measured .9999.",
        calibration=CALIBRATION,
        seeds=4,
    ),
    _learns_better("after-kernel-learns-better", "Regression", "after", "initial"),
    _learns_better("after-kernel-machine-learns-better", "The hard-margin support vector machine", "after@margin",
                   "initial@margin"),
]  # fmt: skip

MEASUREMENTS = [
    Measurement(
        "weight-decay-relu-is-not-exact",
        "ReLU with weight decay, whose kinks settle on the data: relative squared error of the exact predictor and of "
        "K_0's, and the gradient that is left over lambda |theta| after 600 iterations.",
        "this suite",
        _kinked,
        lambda records: {
            "K_T": records[0].arrays["exact"], "K_0": records[0].arrays["initial kernel"],
            "gradient": records[0].arrays["gradient"],
        },
        seeds=4,
    ),
]  # fmt: skip
