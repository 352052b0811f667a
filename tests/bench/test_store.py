"""What is on disk is whole, the same for the same content, and damage is one sentence; and the nested error."""

import math
import os

import numpy as np
import pytest

from bench import store
from bench.record import Record, Score, nested_mean, summarise


def record() -> Record:
    scores = (Score("after/r2", 0.9, 0.01, 2, 0.95, None, (0.89, 0.91)), Score("labels/r2", 0.5, math.nan, 1))
    return Record("a", "done", "", {"width": 8}, scores, {"infinite": "No rule."}, {"f": np.arange(3.0)})


def test_a_record_comes_back_as_it_was(tmp_path):
    store.write_record(tmp_path, record())
    back = store.read_record(tmp_path)
    np.testing.assert_array_equal(back.arrays["f"], record().arrays["f"])
    assert back.score("after/r2") == record().scores[0]
    assert math.isnan(back.score("labels/r2").standard_error)
    assert back.unavailable == {"infinite": "No rule."}
    assert back.score("nothing") is None


def test_the_same_arrays_are_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        store.write_npz(tmp_path / name, {"x": np.arange(5), "y": np.ones((2, 2))})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_hash_does_not_depend_on_the_order_of_keys_but_on_every_value():
    one, two = {"a": 1, "b": {"c": 0.1, "d": [1, 2]}}, {"b": {"d": [1, 2], "c": 0.1}, "a": 1}
    assert store.settings_hash(one) == store.settings_hash(two)
    assert store.settings_hash(one) != store.settings_hash({**one, "a": 2})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    store.write_text(tmp_path / "file", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="space"):
        store.write_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 99}', b"\xff\xfe"])
def test_a_damaged_record_is_one_sentence(damage, tmp_path):
    store.write_record(tmp_path, record())
    (tmp_path / "record.json").write_bytes(damage)
    with pytest.raises(ValueError, match="record") as caught:
        store.read_record(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_arrays_and_settings_are_one_sentence(tmp_path):
    store.write_record(tmp_path, record())
    content = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "arrays.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        store.read_record(tmp_path)
    store.write_yaml(tmp_path / "config.yaml", {"a": 1e-5, "b": [True, None, "x"]})
    assert store.read_yaml(tmp_path / "config.yaml") == {"a": 1e-5, "b": [True, None, "x"]}
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        store.read_yaml(tmp_path / "config.yaml")


def test_the_nested_error_is_that_of_data_and_init_noise_together():
    """Draws with known variances: the mean of the squared errors is the variance of the grand mean.

    It may be above it (the larger of two mean squares is taken, by 10 to 30 % here), hardly below: over 2000 draws the
    mean of a scaled chi-square with 2 degrees of freedom has a relative standard error of 1 / sqrt(2000) = 2.2 %.
    """
    generator = np.random.default_rng(0)
    data = np.repeat([0, 1, 2], 4)
    for data_std, init_std in ((1.0, 0.1), (0.3, 1.0)):
        values = data_std * generator.normal(size=(2000, 3))[:, data] + init_std * generator.normal(size=(2000, 12))
        squares = [nested_mean(row.tolist(), data.tolist())[1] ** 2 for row in values]
        truth = data_std**2 / 3 + init_std**2 / 12
        assert 0.92 < np.mean(squares) / truth < 1.5
        naive = np.mean(values.var(axis=1, ddof=1) / 12)
        if data_std == 1.0:
            assert naive / truth < 0.5  # the control: taking the members for independent is far too sure


def test_one_member_has_no_error():
    score = summarise("x/r2", [0.5], [0])
    assert (score.value, score.n_seeds) == (0.5, 1)
    assert math.isnan(score.standard_error)
    assert math.isnan(nested_mean([], [])[0])
