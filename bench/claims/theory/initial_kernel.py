"""Finite networks at initialization approach their infinite-width kernel (Jacot et al. 2018; Lee et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.claims.claim import Claim, Control, Records, Size, Statistics, predicted
from bench.studies.fits import slopes
from bench.studies.initial_kernels import InitialKernels, initial_kernels
from bench.studies.study import Request


def _requests(activation: str, depth: int) -> Callable[[Size, tuple[int, ...]], Sequence[Request]]:
    def requests(size: Size, seeds: tuple[int, ...]) -> list[Request]:
        widths = (128, 256, 512, 1024, 2048) if size == "cpu" else (512, 1024, 2048, 4096, 8192, 16384)
        n = 64 if size == "cpu" else 512
        return [Request(initial_kernels, InitialKernels(activation, depth, widths, n=n, seeds=seeds))]

    return requests


def _slope(array: str) -> Callable[[Records], Statistics]:
    def statistics(records: Records) -> Statistics:
        arrays = records[0].arrays
        return {"slope": slopes(arrays["widths"], np.sqrt((arrays[array] ** 2).mean(-1)))}

    return statistics


def _ratio(array: str) -> Callable[[Records], Statistics]:
    """Root mean square of distance * sqrt(width) over widths and inits, over the exact one of a single unit."""

    def statistics(records: Records) -> Statistics:
        arrays = records[0].arrays
        scaled = np.sqrt((arrays[array] ** 2 * arrays["widths"][:, None]).mean((1, 2)))
        return {"measured / exact constant": scaled / arrays["constant"]}

    return statistics


def _converges(activation: str, depth: int, seeds: int) -> Claim:
    layers = "one hidden layer" if depth == 1 else f"{depth} hidden layers"
    return Claim(
        name=f"initial-kernel-converges-{activation}-{depth}",
        statement=f"|K_0 - K_inf| / |K_inf| falls as width^(-1/2), {activation}, {layers}.",
        source="Jacot et al. 2018, theorem 1; Lee et al. 2019, section 3",
        kind="theorem",
        requests=_requests(activation, depth),
        statistics=_slope("distance"),
        windows={"slope": predicted(-0.5, gap=0.2)},
        controls=[Control("the limit of a network without biases", _slope("distance_wrong"))],
        seeds=seeds,
        power="Seeds scatter by .02 to .04 in slope: with eight (sixteen), one off by .06 to .11 (.05) is refuted.",
    )


CLAIMS = [
    _converges("relu", 1, 16),  # with those of the constant, which shares them
    _converges("erf", 2, 8),
    Claim(
        name="initial-kernel-constant",
        statement="One hidden layer: E|K_0 - K_inf|^2 is the variance of a one-unit kernel / width, at any width.",
        source="the NTK of one hidden layer is a mean of independent one-unit kernels; that variance by sampling units",
        kind="theorem",
        requests=_requests("relu", 1),
        statistics=_ratio("distance"),
        windows={"measured / exact constant": predicted(1.0, gap=0.1)},
        controls=[Control("the limit of a network without biases", _ratio("distance_wrong"))],
        seeds=16,
        power="Seeds scatter by .026: with sixteen, a constant off by 3.5 % is refuted.",
    ),
]
