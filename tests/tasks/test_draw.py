"""Seeds and drawing without replacement."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.draw
from tasks.draw import check_whole, disjoint, generator


def test_a_seed_is_not_the_stream_of_torch() -> None:
    ours = torch.randn(100, generator=generator(3))
    theirs = torch.randn(100, generator=torch.Generator().manual_seed(3))
    assert not (ours == theirs).any()


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_seeds_differ(a: int, b: int) -> None:
    same = (torch.rand(8, generator=generator(a)) == torch.rand(8, generator=generator(b))).all()
    assert bool(same) == (a == b)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "0", None, True])
def test_seed_refuses(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed must be a whole number from 0 to 4294967295, got .*\.$"):
        generator(seed)


@pytest.mark.parametrize("value", [0, -3, 1.5, "2", None, True])
def test_check_whole_refuses(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^n_train must be a whole number of at least 1, got .*\.$"):
        check_whole("n_train", value, 1)


@given(st.data(), st.integers(2, 200), st.integers(0, 1000), st.booleans())
@settings(max_examples=100, deadline=None)
def test_disjoint_is_without_replacement(data: st.DataObject, total: int, seed: int, reject: bool) -> None:
    n_train = data.draw(st.integers(1, total - 1))
    n_test = data.draw(st.integers(1, total - n_train))
    with pytest.MonkeyPatch.context() as patch:
        if reject:
            patch.setattr(tasks.draw, "_ENUMERABLE", 0)
        train, test = disjoint(total, n_train, n_test, generator(seed), "things")
    assert (len(train), len(test)) == (n_train, n_test)
    both = train.tolist() + test.tolist()
    assert len(set(both)) == len(both)
    assert set(both) <= set(range(total))


@pytest.mark.parametrize("enumerable", [0, 2**20])
def test_disjoint_is_uniform_over_ordered_samples(monkeypatch: pytest.MonkeyPatch, enumerable: int) -> None:
    monkeypatch.setattr(tasks.draw, "_ENUMERABLE", enumerable)
    rng = generator(0)
    drawn = Counter(tuple(torch.cat(disjoint(4, 1, 2, rng, "things")).tolist()) for _ in range(4800))
    assert len(drawn) == 4 * 3 * 2
    assert scipy.stats.chisquare(list(drawn.values())).pvalue > 1e-4


def test_disjoint_refuses() -> None:
    sentence = (
        r"^n_train \+ n_test = 3 \+ 2 must be at most the 4 things: they are drawn without replacement, train and"
    )
    with pytest.raises(ValueError, match=sentence):
        disjoint(4, 3, 2, generator(0), "things")
