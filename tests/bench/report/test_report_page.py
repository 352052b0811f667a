"""The page: well-formed, complete in itself, and saying what the records say."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_records import full_record, grid_of_records, record, score, study

from bench.record import Record
from bench.report import curves, heatmaps, spectra
from bench.report.collect import Collected
from bench.report.figures import new_figure, styled, svg, symmetric
from bench.report.picture import main_picture
from bench.report.render import report_page
from bench.report.studies import studies

VOID = {"meta", "br"}
RECORDS = grid_of_records(["staircase", "digits"], [16, 64, 256], ["ntk", 0.1, 1.0])


class Page(HTMLParser):
    """Checks the nesting; collects ids, references, attributes and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"closed, but never opened: {tag}"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def text() -> str:
    return report_page(Collected(tuple(RECORDS)))


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_the_page_needs_nothing_from_outside(text, page):
    assert not page.tags & {"script", "img", "link", "iframe", "object", "embed", "image", "base"}
    assert not page.values("src", "data", "action", "poster")
    assert all(value.startswith("#") for value in page.values("href", "xlink:href"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    addresses = set(re.findall(r"\w+://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses


def test_every_reference_within_the_page_has_a_target(text, page):
    targets = set(page.values("id"))
    referred = {value[1:] for value in page.values("href", "xlink:href")}
    referred |= {target[1:] for target in re.findall(r"url\(([^)]*)\)", text)}
    assert referred <= targets
    assert {"headline", "maps", "training", "spectra", "widths", "limit", "cells"} <= targets


def test_no_number_is_nan(page):
    assert not re.search(r"\b(nan|inf|None|null)\b", page.text)


def test_the_same_records_give_the_same_bytes(text):
    assert report_page(Collected(tuple(RECORDS))) == text


def test_a_page_of_one_cell_has_no_map_of_one_place():
    page = Page(report_page(Collected((full_record(np.random.default_rng(0), 64, 1.0),))))
    assert {"training", "spectra", "cells"} <= set(page.values("id"))
    assert "maps" not in page.values("id")
    assert "1 of 1 cell done" in page.text


def test_records_without_arrays_or_scores_still_make_a_page():
    reason = "No infinite-width rule for '0' (Conv2d): replace it <now>."
    bare = [
        record(status="unconverged", reason="6 of 6 members did not reach trainer.tolerance."),
        record([score("after/skill", math.nan, math.nan)], width=8, unavailable={"infinite": reason}),
        Record("odd", "failed", "ValueError: x < y & z", {}),
    ]
    page = Page(report_page(Collected(tuple(bare), damaged={"torn": "it is <torn>"}, unfinished=("empty",))))
    for words in (reason, "6 of 6 members", "x < y & z", "it is <torn>", "empty: unfinished"):
        assert words in page.text
    Page(report_page(Collected(())))


def test_a_result_card_says_all_that_another_group_needs(page):
    for words in ("gamma", "base", "targets", "y, self", "ridge", "tolerance", "0.0001", "31.25", "N, training points"):
        assert words in page.text
    assert "2 data, 3 init" in page.text
    assert "nested" in page.text


def test_code_of_several_states_is_a_warning():
    environments = {
        one.name: {"git_sha": sha * 40, "git_dirty": False} for one, sha in zip(RECORDS[:2], "ab", strict=True)
    }
    collected = Collected(tuple(RECORDS[:2]), environments)
    assert "mix 2 git commits" in collected.warnings[0]
    assert collected.warnings[0] in report_page(collected)


def test_pictures_keep_the_digits_of_their_labels():
    with styled():
        figure = new_figure(2, 2)
        figure.text(0.5, 0.5, "0.98765 ± 0.00012")
        figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([0.123456789, 0.7], [1, 2])
        text = svg(figure)
    assert ">0.98765 ± 0.00012<" in text
    assert not re.search(r' d="[^"]*\.\d{3}', text)


# Studies


def test_cells_that_differ_in_more_than_width_and_richness_are_two_studies():
    cells = [record(width=w, richness=r, tolerance=t) for w in (8, 16) for r in ("ntk", 1.0) for t in (1e-2, 1e-3)]
    found = studies(cells)
    assert [len(one.records) for one in found] == [4, 4]
    assert {one.title for one in found} == {"staircase, mlp (tolerance 0.01)", "staircase, mlp (tolerance 0.001)"}
    assert found[0].widths == [8.0, 16.0]
    assert found[0].richnesses == ["ntk", 1.0]


# Width and richness


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_law_of_the_motion_crosses_one_where_it_should(power):
    richness = [0.03, 0.1, 0.3, 1.0, 3.0]
    motion = [(r / 0.42) ** power for r in richness]
    assert heatmaps.transitions(richness, motion) == [pytest.approx(0.42, rel=1e-12)]
    assert heatmaps.transitions(richness[::-1], motion[::-1]) == [pytest.approx(0.42, rel=1e-12)]
    assert heatmaps.transitions(richness, motion, level=0.5)[0] == pytest.approx(0.42 * 0.5 ** (1 / power), rel=1e-12)


def test_motion_that_does_not_cross_has_no_transition():
    assert heatmaps.transitions([0.1, 1.0], [0.1, 0.9]) == []
    assert heatmaps.transitions([0.1, 1.0], [2.0, 9.0]) == []
    assert heatmaps.transitions([0.1], [2.0]) == []
    assert len(heatmaps.transitions([0.1, 1.0, 10.0], [0.1, 2.0, 0.5])) == 2


def test_ntk_stands_at_its_own_richness():
    """gamma = 1 is richness 1/sqrt(width): .25 at width 16; between motion .1 there and 10 at 4 lies 1."""
    cells = [record([score("kernel/motion", m)], 16, r) for r, m in (("ntk", 0.1), (4.0, 10.0))]
    ((width, crossings),) = heatmaps.transition_table(study(cells))
    assert width == 16
    assert crossings == [pytest.approx(1.0, rel=1e-12)]


def test_the_map_puts_every_score_in_its_place():
    cells = [
        record([score("after/skill", w + i / 10)], w, r) for w in (256, 16, 64) for i, r in enumerate((1.0, "ntk", 0.1))
    ]
    found = heatmaps.grid(study(cells[:-1]), "after/skill")
    values = [[None if s is None else s.value for s in row] for row in found]
    assert values == [[16.1, 16.2, 16.0], [64.1, None, 64.0], [256.1, 256.2, 256.0]]


def test_the_line_from_lazy_to_rich_is_drawn_where_the_motion_is_one():
    """Motion 10 ** (column - 0.5): log motion crosses 0 halfway between the centres of the first two columns."""
    cells = [
        record([score("kernel/motion", 10.0 ** (i - 0.5)), score("after/skill", 0.5)], w, r)
        for w in (16, 64)
        for i, r in enumerate((0.1, 1.0, 10.0))
    ]
    for some in (cells, cells[:3]):  # two widths, and one
        figure = heatmaps.draw(study(some))
        for axes in figure.axes:
            lines = [path.vertices for kind in axes.collections[1:] for path in kind.get_paths() if len(path.vertices)]
            assert len(lines) == 2  # the line and its border
            for vertices in lines:
                np.testing.assert_allclose(vertices[:, 0], 1.0, atol=1e-12)
                assert {vertices[:, 1].min(), vertices[:, 1].max()} == {0.0, len(some) / 3}  # from edge to edge


# While training, spectra


def test_the_scale_of_skill_changes_sign_when_prediction_and_labels_are_exchanged():
    a, b = np.array([0.1, 1.0, 7.0]), np.array([2.0, 1.0, 0.3])  # squared distances of prediction and labels
    np.testing.assert_allclose(symmetric(1 - a / b), -symmetric(1 - b / a), atol=1e-15)
    assert symmetric(np.array([-1e9])) >= -1


def test_training_curves_are_drawn_against_the_loss():
    loss = np.array([[1.0, 0.1, 0.01], [1.0, 0.2, 0.01]])
    r2, skill = np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 0.8]]), np.array([[-3.0, 0.0, 0.8], [-1.0, 0.1, 0.7]])
    error = np.array([[1.0, 0.5, 0.1], [0.9, 0.4, 0.2]])
    arrays = {"snapshot_loss": loss, "snapshot_r2": r2, "snapshot_skill": skill, "snapshot_test_error": error}
    (figure,) = curves.draw(study([record(arrays=arrays)]))
    dashed, solid = (kind.get_segments() for kind in figure.axes[0].collections)
    x = -np.log10(loss) / 2  # from loss 1 at the left to .01 at the right
    for member in range(2):
        np.testing.assert_allclose(dashed[member], np.column_stack([x[member], symmetric(r2[member])]), atol=1e-12)
        np.testing.assert_allclose(solid[member], np.column_stack([x[member], symmetric(skill[member])]), atol=1e-12)
    (errors,) = figure.axes[1].collections
    np.testing.assert_allclose(errors.get_segments()[1][:, 1], np.log10(error[1]), atol=1e-12)


def test_spectra_are_geometric_means_without_rounding_errors():
    index = np.arange(1, 101.0)
    rows = np.stack([4.0 * index**-2, 1.0 * index**-2])
    rows[:, 90:] = 1e-17
    at, values = spectra.thinned(rows)
    assert at[0] == 1
    assert at[-1] <= 90
    np.testing.assert_allclose(values, np.log10(2.0 * at**-2.0), atol=1e-12)


def test_the_infinite_width_spectrum_is_drawn_where_there_is_one():
    one = full_record(np.random.default_rng(0), 64, 1.0)
    without = record(arrays={k: v for k, v in one.arrays.items() if k != "spectrum_infinite"})
    kinds = [len(next(spectra.draw(study([some]))).axes[0].collections) for some in (one, without)]
    assert kinds == [3, 2]
    assert "infinite-width kernel" in report_page(Collected((one,)))
    assert "infinite-width kernel<" not in report_page(Collected((without,)))


# The picture of the README


def test_the_main_picture_is_written_and_the_same_every_time(tmp_path):
    for name in ("a.svg", "b.svg", "a.png"):
        main_picture(RECORDS, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        main_picture(RECORDS, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="No cell has a skill"):
        main_picture([record()], tmp_path / "a.png")
