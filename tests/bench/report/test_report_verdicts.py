"""When a prediction may be called a match: beyond the labels, beyond every floor, and not by R2 alone."""

import math

import pytest
from synthetic_records import record, score

from bench.report.verdicts import cell_sentence, floor_skill, headline, no_verdict, unavailable, verdict


def cell(skill: float, error: float = 0.02, r2: float = 0.97, floor: float = 0.3, predictor: str = "after", **more):
    scores = [score(f"{predictor}/r2", r2), score(f"{predictor}/skill", skill, error), score("laplace/skill", floor)]
    return record([*scores, score("labels/skill", 0.0, 0.0), *more.pop("scores", ())], **more)


@pytest.mark.parametrize(
    ("skill", "error", "r2", "floor", "kind"),
    [
        (0.84, 0.02, 0.97, 0.3, "match"),
        (0.84, 0.30, 0.97, 0.3, "no match"),  # .84 - .60 is below the floor
        (0.51, 0.01, 0.97, 0.3, "match"),
        (0.35, 0.01, 0.97, 0.3, "weak"),  # beyond the floor, but not far better than the labels
        (0.138, 0.021, 0.991, 0.0, "weak"),  # the trap as it is measured: R2 .99 and hardly any skill
        (0.31, 0.01, 0.97, 0.3, "no match"),  # above the floor, but not by two errors
        (0.84, 0.02, 0.97, 0.9, "no match"),
        (0.05, 0.03, 0.90, -0.5, "no match"),  # not beyond its error
        (-0.5, 0.02, 0.80, 0.3, "no match"),
        (0.01, 0.05, 0.99, 0.3, "labels"),  # the trap
        (-0.2, 0.05, 0.99, 0.3, "labels"),
        (0.84, math.nan, 0.97, 0.3, "none"),  # a single seed
        (math.nan, 0.02, 0.97, 0.3, "none"),
    ],
)
def test_the_kind_of_a_verdict(skill, error, r2, floor, kind):
    assert verdict(cell(skill, error, r2, floor), "after").kind == kind


def test_r2_of_99_without_skill_is_no_match_and_says_why():
    """Staircase with n_train=256: the network has learnt its target, and so has every predictor that generalises."""
    trap = cell(0.02, 0.04, 0.99)
    found = verdict(trap, "after")
    assert found.kind == "labels"
    assert "the labels would match as well" in found.sentence
    assert "0.99" in found.sentence
    assert "skill 0.02" in found.sentence
    assert "in 1 more its R2 is above 0.95" in headline([trap])[0]


def test_a_weak_match_is_counted_apart():
    cells = [cell(0.138, 0.021, 0.991, floor=0.0), cell(0.9), cell(0.9)]
    assert headline(cells) == ["The after kernel matches 2 of 3 cells; 1 more weakly, with a skill below 0.5."]
    assert "0.991" in verdict(cells[0], "after").sentence


def test_the_floor_is_the_best_of_the_rivals_and_of_the_predictors_own():
    rivals = [score("laplace/skill", 0.2), score("agop_laplace/skill", 0.5), score("labels/skill", 0.0)]
    assert floor_skill(record(rivals)) == 0.5
    assert floor_skill(record([*rivals, score("after/skill", 0.9, floor=0.7)])) == 0.7
    assert floor_skill(record([*rivals, score("initial/skill", 0.9, floor=0.7)]), "after") == 0.5
    assert math.isnan(floor_skill(record()))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"status": "unconverged", "reason": "2 of 6 members did not reach it."}, "unconverged (2 of 6 members"),
        ({"status": "diverged", "reason": ""}, "the cell is diverged"),
        ({"unfinished": True}, "its tolerance shows"),
    ],
)
def test_a_flagged_cell_carries_no_verdict_however_good_its_scores(more, words):
    flagged = cell(0.99, 0.001, **more)
    assert verdict(flagged, "after").kind == "none"
    assert words in no_verdict(flagged)
    assert words in cell_sentence(flagged)
    assert headline([flagged])[0] == "No cell carries a verdict."
    assert "1 of 1" in headline([flagged])[1]


def test_the_headline_counts_by_regime():
    cells = [
        cell(skill, r2=0.9, scores=[score("kernel/motion", motion)])
        for skill, motion in ((0.9, 0.1), (0.9, 0.2), (-0.5, 0.3), (0.9, 5.0), (-0.5, 6.0), (-0.4, 7.0), (-0.3, 8.0))
    ]
    expected = "The after kernel matches 3 of 7 cells (lazy, kernel motion below 1: 2 of 3; rich: 1 of 4)."
    assert headline(cells) == [expected]
    assert headline(cells[:1]) == ["The after kernel matches 1 of 1 cell."]


def test_a_single_seed_is_counted_apart():
    single = cell(0.9, math.nan)
    assert no_verdict(single) == "a single network has no error"
    assert headline([single]) == [
        "No cell carries a verdict.",
        "Without a verdict, because a single network has no error: 1 of 1.",
    ]


def test_without_clean_labels_there_is_no_skill_and_so_no_verdict():
    bare = record([score("after/r2", 0.99)])
    assert verdict(bare, "after").kind == "none"
    assert no_verdict(bare) == "no skill was measured"
    assert cell_sentence(bare) == "No verdict: no skill was measured."


def test_one_reason_for_many_cells_is_one_sentence():
    reason = {"infinite": "No infinite-width rule for '0' (Conv2d)."}
    cells = [record(width=w, unavailable=reason) for w in (8, 16)]
    (sentence,) = unavailable([*cells, record()])
    assert "2 cells" in sentence
    assert sentence.endswith(reason["infinite"])
    assert cells[0].name in unavailable(cells[:1])[0]
