"""The split of the variance against tables of functions that are made with known parts, and one small real run."""

import numpy as np
import pytest

from bench.report.formats import measured
from bench.report.panels import study_page
from bench.studies.bias_variance import PARTS, BiasVariance, bias_variance, compare, decompose
from bench.trained import Member

TRUE = {"bias": 0.5, "variance_data": 0.3, "variance_init": 0.2, "variance_both": 0.1}


def table(generator, D, I, points=20, **parts):  # noqa: E741
    """f [D, I, points] and y of mean square 1, with parts of these sizes."""
    sizes = {**TRUE, **parts}
    y = np.where(np.arange(points) % 2, 1.0, -1.0)
    data = sizes["variance_data"] ** 0.5 * generator.normal(size=(D, 1, points))
    init = sizes["variance_init"] ** 0.5 * generator.normal(size=(1, I, points))
    both = sizes["variance_both"] ** 0.5 * generator.normal(size=(D, I, points))
    return y + sizes["bias"] ** 0.5 + data + init + both, y


@pytest.mark.parametrize(("D", "I"), [(2, 2), (3, 5)])
def test_the_parts_are_estimated_without_bias(D, I):  # noqa: E741
    generator = np.random.default_rng(0)
    found = [decompose(*table(generator, D, I)) for _ in range(400)]
    for name, true in TRUE.items():
        values = np.array([one[name] for one in found])
        assert abs(values.mean() - true) < 4 * values.std(ddof=1) / 20, name
    for one in found[:20]:
        assert one["test_error"] == pytest.approx(sum(one[name] for name in TRUE))
    # The control: the plain squared error of the grand mean is no estimate of the bias.
    plain = [((f.mean((0, 1)) - y) ** 2).mean() for f, y in (table(generator, D, I) for _ in range(400))]
    assert np.mean(plain) - TRUE["bias"] > 0.02 + 4 * np.std(plain) / 20


def test_mean_functions_that_agree_are_at_no_distance():
    generator = np.random.default_rng(1)
    apart, single = [], []
    for _ in range(400):
        y = np.ones(20)
        data = generator.normal(size=(3, 1, 20))  # the same for both widths
        narrow, wide = (data + s * generator.normal(size=(3, 2, 20)) for s in (0.5, 0.3))
        values = compare(narrow, wide, y)
        apart.append(values[0])
        single.append(values[1])
    assert abs(np.mean(apart)) < 4 * np.std(apart) / 20
    assert np.mean(single) == pytest.approx(0.5**2 + 0.3**2, rel=0.05)  # 400 tables of 60 points: well below 1 %
    assert compare(wide, wide, y)[0] == 0.0
    assert compare(wide + 1.0, wide, y)[0] > 0.8  # the control: a mean that is 1 off


def test_a_small_table_of_networks():
    settings = BiasVariance(widths=(16, 32, 64), n_train=32, n_test=100, seeds=(0, 1), tolerance=1e-3)
    record = bias_variance(settings)
    assert record.status == "done"
    for name in (*PARTS, "consistency", "distance"):
        assert record.arrays[name].shape == (2, 3)
    total = sum(record.arrays[name] for name in PARTS[1:])
    np.testing.assert_allclose(record.arrays["test_error"], total)
    np.testing.assert_array_equal(record.arrays["consistency"][:, -1], 0)
    within = record.arrays["variance_init"] + record.arrays["variance_both"]
    assert (within.mean(0)[0] > within.mean(0)[2] > 0).all()  # falls with the width
    fitted = record.score("variance_both/per_width")
    assert fitted.n_seeds == 2
    limit, (line,) = record.score("variance_both/limit").value, record.arrays["fit_variance_both"]
    np.testing.assert_allclose(line, limit + fitted.value / np.array(settings.widths))
    text = study_page(record)
    assert text.count("<svg") == 1  # three panels in a row
    assert measured(fitted) in text


def test_the_same_init_on_every_draw_is_the_same_network():
    assert Member(0, 5, crossed=True).init_seed == Member(1, 5, crossed=True).init_seed
    assert Member(0, 5).init_seed != Member(1, 5).init_seed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (64, 128)}, "widths must be three"),
        ({"widths": (64, 128, 128)}, "widths must be three"),
        ({"draws": 1}, "draws and inits"),
        ({"seeds": ()}, "seeds"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        BiasVariance(**settings)


def test_networks_that_are_not_done_are_no_numbers():
    settings = BiasVariance(widths=(8, 16, 32), n_train=32, n_test=50, seeds=(0,), max_steps=3)
    record = bias_variance(settings)
    assert record.status == "unconverged"
    assert "12 of 12" in record.reason
    assert np.isnan(record.arrays["test_error"]).all()
