"""The tables: what is written can be read back, and LaTeX would accept it."""

import csv
import io
import math
import re

import numpy as np
import pytest
from synthetic_records import full_record, grid_of_records, record, score

from bench.record import Score
from bench.report.formats import compact, measured, number
from bench.report.tables import main_csv, main_tex, scores_csv, seeds_of, text_table

RECORDS = grid_of_records(["staircase", "digits"], [16, 64], ["ntk", 0.3])


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_score_is_read_back_to_the_last_bit():
    rows = {(row["name"], row["score"]): row for row in parsed(scores_csv(RECORDS))}
    assert len(rows) == sum(len(one.scores) for one in RECORDS)
    for one in RECORDS:
        for s in one.scores:
            row = rows[one.name, s.name]
            assert (float(row["value"]), float(row["standard_error"])) == (s.value, s.standard_error)
            assert int(row["n_seeds"]) == s.n_seeds
            for bound in ("ceiling", "floor"):
                assert (float(row[bound]) if row[bound] else None) == getattr(s, bound)


def test_the_main_table_is_read_back_with_its_card():
    rows = {row["name"]: row for row in parsed(main_csv(RECORDS))}
    assert set(rows) == {one.name for one in RECORDS}
    for one in RECORDS:
        row = rows[one.name]
        assert float(row["after/skill"]) == one.score("after/skill").value
        assert float(row["after/skill_standard_error"]) == one.score("after/skill").standard_error
        assert int(row["after/skill_n"]) == 6
        for key in ("gamma", "ridge", "tolerance", "t", "n_train"):
            assert float(row[key]) == one.card[key]
        assert row["base"] == "init"
        assert row["seeds"] == '{"data": 2, "init": 3}'


def test_what_was_not_measured_is_an_empty_field_never_nan():
    one = record([Score("after/skill", math.nan, math.nan, 1)], status="unconverged", reason='a "quoted", reason')
    for text in (main_csv([one]), scores_csv([one])):
        assert "nan" not in text
    (row,) = parsed(main_csv([one]))
    assert row["after/skill"] == row["initial/skill"] == ""
    assert row["reason"] == 'a "quoted", reason'


def columns_of(row: str) -> int:
    spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", row)]
    return len(re.split(r"(?<!\\)&", row)) + sum(spans) - len(spans)


def test_latex_is_balanced_and_every_row_has_all_columns():
    awkward = full_record(np.random.default_rng(1), 8, 1.0, task="a_b & 50% #1 {x} ~^\\ $")
    text = main_tex([*RECORDS, awkward, record(status="unconverged")])
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    specification = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)[1]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 + len(RECORDS) + 2
    assert {columns_of(row) for row in rows} == {len(specification)}
    for line in text.splitlines():
        bare = re.sub(r"\\[\\&%$#_{}]", "", line)
        assert bare.count("$") % 2 == 0
        assert bare.count("{") == bare.count("}")
        assert not set(bare) & set("%#~")
        assert "_" not in bare  # outside mathematics it stops LaTeX, and there is none within
        assert line.isascii()
    assert r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$" in text


def test_latex_writes_the_numbers_of_the_records():
    text = main_tex([record([score("after/skill", 0.8423, 0.012), score("kernel/motion", 1.2e-5, 3e-6)])])
    assert r"$0.842 \pm 0.012$" in text
    assert r"1.2 \cdot 10^{-5}" in text


@pytest.mark.parametrize(
    ("value", "error", "n", "long", "short"),
    [
        (0.8423, 0.0123, 6, "0.842 ± 0.012 (6)", ".842±.012"),
        (-0.5, 0.2, 3, "-0.50 ± 0.20 (3)", "-.50±.20"),
        (15.12, 1.6, 4, "15.1 ± 1.6 (4)", "15.1±1.6"),
        (0.5, math.nan, 1, "0.500 ± – (1)", ".500"),
        (math.nan, math.nan, 1, "–", "–"),
    ],
)
def test_a_number_comes_with_its_error_and_its_seeds(value, error, n, long, short):
    assert measured(Score("a/b", value, error, n)) == long
    assert compact(Score("a/b", value, error, n)) == short


def test_written_numbers_are_near_the_numbers():
    for value in (1.0, 0.99951, 0.0123, 1234.5, -3.7e-7, 9.87e8, 0.0):
        # Three significant digits, or four decimals: half a unit of the last one; two digits with an exponent.
        assert float(number(value)) == pytest.approx(value, rel=0.05, abs=5.1e-5 if abs(value) > 1e-3 else 0)


def test_the_number_of_seeds_is_a_range_where_scores_differ_in_it():
    assert seeds_of(record([score("after/r2", 0.9, n=6), score("labels/r2", 0.9, n=6)])) == "6"
    assert seeds_of(record([score("after/r2", 0.9, n=6), score("labels/r2", 0.9, n=4)])) == "4-6"
    assert seeds_of(record()) == "–"


def test_the_table_for_the_terminal_has_a_row_a_cell_in_order():
    lines = text_table([*RECORDS[::-1], record(task="wine", unfinished=True)]).splitlines()
    body = lines[3 : 3 + len(RECORDS) + 1]
    cells = [tuple(line.split()[:4]) for line in body]
    expected = [(task, "mlp", w, r) for task in ("digits", "staircase") for w in ("16", "64") for r in ("ntk", "0.3")]
    assert cells == [*expected, ("wine", "mlp", "64", "1")]
    assert "done*" in body[-1]
    assert text_table([]) == "no finished cell yet"
