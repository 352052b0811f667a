"""Laws that hold to rounding or to the step size, whatever the network learns: anchors of the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.claims.claim import Claim, Control, Records, Size, Statistics, Window
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


def _exact(name: str, words: str, richness: float | str, centred: bool, wrong: Sequence[str]) -> Claim:
    label = "relative squared error"
    return Claim(
        name=f"weight-decay-exact-{name}",
        statement=f"At a stationary point with weight decay a relu^2 network is regression with its own K_T and ridge "
        f"gamma^2 N L lambda, to 1e-10; {words}.",
        source="Euler's theorem for homogeneous functions; Lauditi, Bordelon and Pehlevan 2025 at infinite width",
        kind="theorem",
        requests=lambda size, seeds: [Request(exactness, Exactness(richness, centred, seeds=seeds))],
        statistics=_array(label, "exact"),
        windows={label: Window(high=1e-10, every=True)},
        controls=[Control(what, _array(label, what)) for what in wrong],
        power=IDENTITY,
        seeds=4,
    )


def _edge(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(edge, Edge((1.9, 2.1, 2.5), 2048 if size == "cpu" else 8192, seeds=seeds))]


def _catapult(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(edge, Edge((1.5, 2.5), 512, 150, seeds=seeds))]


def _caught(column: int) -> Statistic:
    return lambda records: {
        "lambda_max after / before": records[0].arrays["lambda"][:, column],
        "diverged": records[0].arrays["diverged"][:, column],
    }


def _courses(size: Size, seeds: Seeds) -> list[Request]:
    return [Request(kernel_course, KernelCourse(richness, seeds=seeds)) for richness in (1.0, 10.0)]


def _course(study: int, level: int, of: Sequence[tuple[str, str]]) -> Statistic:
    return lambda records: {label: records[study].arrays[name][:, level] for label, name in of}


def _path(array: str) -> Statistic:
    def statistics(records: Records) -> Statistics:
        error = records[0].arrays[array]
        return {"error at c = .1": error[:, 1], "error at c = .3 / at c = .1": error[:, 0] / error[:, 1]}

    return statistics


def _readout(size: Size, seeds: Seeds) -> list[Request]:
    trainer = {"richness": "ntk", "readout_only": True, "dtype": "float64", "tolerance": 1e-2}
    compare = ("network", "linearised", "initial")
    return [Request(scored_networks, ScoredNetworks("staircase", 256, trainer, compare, seeds))]


def _distance(predictor: str) -> Statistic:
    return lambda records: {"|p - f_T| / |f_T|": records[0].arrays[f"{predictor}/relative_l2"].mean(1)}


def _learner(size: Size, seeds: Seeds) -> list[Request]:
    task = {"d": 30, "k": 2, "n_train": 200}
    return [Request(scored_networks, ScoredNetworks("parity", 256, {"richness": 1.0}, ("network", "after", "initial"),
                                                    seeds, task))]  # fmt: skip


def _forms(size: Size, seeds: Seeds) -> list[Request]:
    task = {"classes": None, "n_train": 150}
    trainer = {"richness": 0.05, "tolerance": 1e-2}
    return [Request(scored_networks, ScoredNetworks("digits", 256, trainer, ("network", "initial"), seeds, task))]


def _gain(form: str) -> Statistic:
    return lambda records: {
        "R2 over that of the trace": (records[0].arrays[form] - records[0].arrays["initial#trace/r2"]).mean(1)
    }


CLAIMS = [
    _exact("ntk", "gamma = 1, centred", "ntk", True, ("no ridge", "wrong degree", "initial kernel", "base zero")),
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
        power=IDENTITY,
        seeds=5,
    ),
    Claim(
        name="catapult",
        statement="With c = 2.5 training does not diverge: it comes down at a lambda_max less than .8 of that before.",
        source="Lewkowycz et al. 2020",
        kind="calibrated",
        requests=_catapult,
        statistics=_caught(1),
        windows={"lambda_max after / before": Window(high=0.8, every=True), "diverged": Window(high=0.5, every=True)},
        controls=[Control("c = 1.5, below the edge", _caught(0))],
        power="In every run; measured .5.",
        calibration=CALIBRATION,
        seeds=5,
    ),
    Claim(
        name="path-kernel",
        statement="f_T - f_0 is the sum of every step's kernel times its residual, up to an error in proportion to "
        "the step.",
        source="Domingos 2020, for gradient descent",
        kind="calibrated",
        requests=lambda size, seeds: [Request(path_kernel, PathKernel(seeds=seeds))],
        statistics=_path("error"),
        windows={"error at c = .1": Window(high=0.02, every=True),
                 "error at c = .3 / at c = .1": Window(2.0, 5.0, every=True)},
        controls=[Control("the initial kernel at every step", _path("frozen"))],
        power="In every run; measured .008 and 2.8.",
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
        "of the loss are left, and its size less than .15.",
        source="Atanasov, Bordelon and Pehlevan 2021",
        kind="calibrated",
        requests=_courses,
        statistics=_course(1, 0, [("direction", "direction"), ("size", "size")]),
        windows={"direction": Window(low=0.45, gap=0.3), "size": Window(high=0.15, gap=0.3)},
        controls=[Control("richness 1", _course(0, 0, [("direction", "direction"), ("size", "size")]))],
        power="Seeds scatter by .05 in direction and .01 in size.",
        calibration=CALIBRATION,
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
        requests=lambda size, seeds: [Request(tautology, Tautology(seeds))],
        statistics=_array("R2", "trained"),
        windows={"R2": Window(low=0.999, every=True)},
        controls=[Control("the same kernel on base zero", _array("R2", "zero"))],
        power="In every run; measured .9999.",
        calibration=CALIBRATION,
        seeds=4,
    ),
    Claim(
        name="after-kernel-learns-better",
        statement="Regression with the after-kernel solves parity of two (d = 30, 200 points): class error below .05, "
        "where the initial kernel's is above .2.",
        source="Long 2021",
        kind="calibrated",
        requests=_learner,
        statistics=lambda records: {
            "after": records[0].arrays["after/class_error"].mean(1),
            "initial": records[0].arrays["initial/class_error"].mean(1),
        },
        windows={"after": Window(high=0.05, gap=0.1), "initial": Window(low=0.2, gap=0.15)},
        controls=[Control("the initial kernel in place of the after-kernel",
                          lambda records: {"after": records[0].arrays["initial/class_error"].mean(1)})],
        power="Seeds scatter by .01 and .03.",
        calibration=CALIBRATION,
    ),
    Claim(
        name="lazy-multi-output-needs-the-full-kernel",
        statement="Ten classes, lazy (richness .05): the full N C x N C kernel beats the trace over outputs by .005 in "
        "R2 at least.",
        source="this suite; Mohamadi, Bae and Sutherland 2023 for the sum of logits",
        kind="calibrated",
        requests=_forms,
        statistics=_gain("initial/r2"),
        windows={"R2 over that of the trace": Window(low=0.005, gap=0.02)},
        controls=[Control("the sum of logits in place of the full kernel", _gain("initial#sum/r2"))],
        power="Seeds scatter by .003; measured .015.",
        calibration=CALIBRATION,
    ),
]  # fmt: skip
