"""The ensemble mean at infinite width: recovered exactly where the outputs are f + b/n, with the error that it has."""

import numpy as np
import pytest
from synthetic_records import record, study

from bench.record import Record
from bench.report.extrapolate import extrapolations, limits

POINTS = 30


def target(draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The limit f of one data draw and the correction b, which the draws share, [points, 1] each."""
    f, b = (np.random.default_rng(seed).standard_normal((POINTS, 1)) for seed in (100 + draw, 99))
    return f, b


def labels(draw: int) -> np.ndarray:
    return np.sign(target(draw)[0])


def cell(width: int, inits: int, noise: np.ndarray | float = 0.0, draws: tuple[int, ...] = (0, 1)) -> Record:
    """Outputs f + b/width + noise, [draws, inits, points, 1] or what broadcasts to it."""
    means = np.stack([f + b / width for f, b in map(target, draws)])[:, None]
    f_test = (np.broadcast_to(means, (len(draws), inits, POINTS, 1)) + noise).reshape(-1, POINTS, 1)
    arrays = {
        "f_test": f_test,
        "y_test": np.stack([labels(draw) for draw in draws]),
        "member_data": np.repeat(np.arange(len(draws)), inits),
        "member_init": np.tile(np.arange(inits), len(draws)),
    }
    return record(width=width, arrays=arrays)


def r2(prediction: np.ndarray, f: np.ndarray) -> float:
    return float(1 - ((prediction - f) ** 2).sum() / ((f - f.mean()) ** 2).sum())


def skill(prediction: np.ndarray, f: np.ndarray, y: np.ndarray) -> float:
    return float(1 - ((prediction - f) ** 2).sum() / ((y - f) ** 2).sum())


def test_f_plus_b_over_n_is_recovered_exactly():
    found = limits(cell(64, 3), cell(256, 3))
    assert [limit.data for limit in found] == [0, 1]
    for limit in found:
        # Two numbers of order 1, weighted by -1/3 and 4/3: a few float64 roundings.
        np.testing.assert_allclose(limit.mean, target(limit.data)[0], atol=1e-13)


def test_a_third_width_is_scored_against_that_limit():
    one, *_ = [
        e for e in extrapolations(study([cell(16, 3), cell(64, 3), cell(256, 3)])) if e.record.card["width"] == 16
    ]
    assert one.widths == (64.0, 256.0)
    f = [target(draw)[0] for draw in (0, 1)]
    seen = [f + b / 16 for f, b in map(target, (0, 1))]
    assert one.r2.value == pytest.approx(np.mean([r2(p, g) for p, g in zip(f, seen, strict=True)]), abs=1e-12)
    expected = [skill(p, g, labels(draw)) for draw, (p, g) in enumerate(zip(f, seen, strict=True))]
    assert one.skill.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert one.r2.n_seeds == 6


def test_the_widest_two_are_used_whatever_the_order_of_the_records():
    rng = np.random.default_rng(0)
    cells = [cell(width, 2, 0.1 * rng.standard_normal((2, POINTS, 1))) for width in (16, 64, 256)]
    scores = [{e.record.name: e.r2.value for e in extrapolations(study(order))} for order in (cells, cells[::-1])]
    assert scores[0] == scores[1]


def test_a_network_is_left_out_of_the_mean_that_predicts_it():
    rng = np.random.default_rng(1)
    narrow, wide = (cell(width, 4, 0.3 * rng.standard_normal((4, POINTS, 1)), draws=(0,)) for width in (64, 256))
    (one,) = [e for e in extrapolations(study([narrow, wide])) if e.record.card["width"] == 256]
    # The scatter of a mean of three and four inits, by hand: weights 4/3 and -1/3.
    spread = [((part.arrays["f_test"]).var(axis=0, ddof=1)).sum() for part in (wide, narrow)]
    noise = (4 / 3) ** 2 * spread[0] / 3 + (1 / 3) ** 2 * spread[1] / 4
    for left_out in range(4):
        kept = [i for i in range(4) if i != left_out]
        arrays = {**wide.arrays, "f_test": wide.arrays["f_test"][kept]}
        arrays |= {name: wide.arrays[name][kept] for name in ("member_data", "member_init")}
        (limit,) = limits(narrow, record(width=256, arrays=arrays))
        f = wide.arrays["f_test"][left_out]
        sizes = ((f - f.mean()) ** 2).sum(), ((labels(0) - f) ** 2).sum()
        expected = r2(limit.mean, f) + noise / sizes[0], skill(limit.mean, f, labels(0)) + noise / sizes[1]
        assert one.r2.per_member[left_out] == pytest.approx(expected[0], abs=1e-12)
        assert one.skill.per_member[left_out] == pytest.approx(expected[1], abs=1e-12)


def test_few_inits_do_not_cost_score():
    """Means of two inits with much scatter score on average what the exact limit f does: within four standard errors.

    Without the correction the average would be lower by the scatter over the variance of the outputs, many errors.
    """
    rng = np.random.default_rng(3)
    fixed = cell(2, 3)
    truth = np.mean([r2(f, f + b / 2) for f, b in map(target, (0, 1))])
    values = []
    for _ in range(500):
        means = [cell(w, 2, 0.5 * rng.standard_normal((2, POINTS, 1))) for w in (64, 256)]
        (one,) = [e for e in extrapolations(study([fixed, *means])) if e.record.card["width"] == 2]
        values.append(one.r2.value)
    error = np.std(values, ddof=1) / len(values) ** 0.5
    scatter = (
        (16 / 9 + 1 / 9) * 0.25 / 2 * POINTS / np.mean([((f - f.mean()) ** 2).sum() for f, _ in map(target, (0, 1))])
    )
    assert abs(np.mean(values) - truth) < 4 * error
    assert scatter > 10 * error  # what the test could see


@pytest.mark.slow
def test_its_error_is_the_scatter_over_fresh_inits():
    """Fresh inits for the two means, the predicted networks fixed: the scatter of the score is what is reported.

    Each draw has inits of its own, so their effects add in squares: taking them for shared would be wrong by sqrt(2),
    as the distance b/n to the predicted networks is that of both draws. Dividing by 3 instead of sqrt(3 x 2) would be
    wrong by 22 %. With R = 1000 repetitions the standard deviation is known to 1/sqrt(2R) = 2.2 %, and the root mean
    square of errors with 2 degrees of freedom or more to 1/sqrt(2 x 2 R) = 1.6 %: four of these together are 11 %. The
    noise is small against the distance, so that it acts to first order.
    """
    rng = np.random.default_rng(2)
    inits, size = 3, 0.02
    fixed = cell(2, 3)
    values, errors = [], []
    for _ in range(1000):
        means = [cell(w, inits, size * rng.standard_normal((2, inits, POINTS, 1))) for w in (64, 256)]
        (one,) = [e for e in extrapolations(study([fixed, *means])) if e.record.card["width"] == 2]
        values.append((one.r2.value, one.skill.value))
        errors.append((one.r2_error, one.skill_error))
    scatter = np.std(values, axis=0, ddof=1)
    reported = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(reported, scatter, rtol=0.11)


def test_one_init_has_no_error_and_cannot_predict_itself():
    found = list(extrapolations(study([cell(16, 1), cell(64, 1), cell(256, 1)])))
    assert [e.record.card["width"] for e in found] == [16]
    assert np.isnan(found[0].r2_error)
    assert np.isfinite(found[0].r2.value)


def test_cells_on_other_data_are_not_mixed():
    assert limits(cell(64, 3, draws=(0,)), cell(256, 3, draws=(1,))) == []
    shared = limits(cell(64, 3, draws=(1,)), cell(256, 3, draws=(0, 1)))  # matched by labels, not by index
    assert len(shared) == 1
    np.testing.assert_allclose(shared[0].mean, target(1)[0], atol=1e-13)


def test_cells_that_are_not_done_or_keep_no_outputs_take_no_part():
    bad = cell(1024, 3, noise=5.0)
    stopped = Record(bad.name, "unconverged", "why", bad.card, arrays=bad.arrays)
    cells = [cell(64, 3), cell(256, 3)]
    assert {e.widths for e in extrapolations(study([*cells, stopped, record(width=2048)]))} == {(64.0, 256.0)}
    assert list(extrapolations(study([cells[0]]))) == []
