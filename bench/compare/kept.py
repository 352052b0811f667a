"""Answers that several comparisons read, each found once a cell."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from bench.trained import Trained

P = ParamSpec("P")
R = TypeVar("R")
Of = Callable[Concatenate[Trained, P], R]


def kept(most: int) -> Callable[[Of[P, R]], Of[P, R]]:
    """Of a function of a ``Trained``, the ``most`` latest results by its other arguments stay as long as the
    ``Trained`` does, and no longer: a process has many cells one after another. Results must not hold it themselves.
    """

    def decorate(function: Of[P, R]) -> Of[P, R]:
        caches: weakref.WeakKeyDictionary[Trained, Callable[..., R]] = weakref.WeakKeyDictionary()

        @functools.wraps(function)
        def cached(trained: Trained, *args: P.args, **kwargs: P.kwargs) -> R:
            if trained not in caches:
                caches[trained] = functools.lru_cache(most)(_of(function, weakref.ref(trained)))
            return caches[trained](*args, **kwargs)

        return cached

    return decorate


def _of(function: Of[P, R], itself: weakref.ref[Trained]) -> Callable[P, R]:
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        trained = itself()
        assert trained is not None
        return function(trained, *args, **kwargs)

    return answer
