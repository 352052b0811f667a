"""The page: sections in the order in which a reader asks, each from the records and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import TYPE_CHECKING

from bench.record import Score
from bench.report import curves, heatmaps, markup, picture, slopes, spectra
from bench.report.cards import cards
from bench.report.collect import Collected
from bench.report.extrapolate import Extrapolated, extrapolations
from bench.report.figures import COLOURS, styled, svg
from bench.report.formats import ABSENT, measured, number
from bench.report.studies import Study, cell_label, richness_label, studies, width_label, width_of
from bench.report.tables import seeds_of
from bench.report.verdicts import (
    ERRORS,
    HIGH_R2,
    NAMES,
    PREDICTORS,
    cell_sentence,
    flag,
    floor_skill,
    headline,
    verdict,
)
from bench.report.widths import QUANTITIES, power_laws

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW_TO_READ = (
    ("What is compared", "Every predictor is a kernel regression that was fitted to the training labels. It is "
     "compared with f_T, the outputs of the trained networks on test points: not with the labels."),
    ("R2", "1 - |p - f_T|² / |f_T - mean|². High for anything that generalises: where the networks have learnt their "
     "target, the labels themselves score .99."),
    ("skill", "1 - |p - f_T|² / |y - f_T|², y the clean test labels. 0: no better a description of the network than "
     "the labels; 1: the network itself; negative: worse than the labels."),
    ("match", f"Skill above 0, and above every floor, by {ERRORS:g} standard errors. Nothing else is called a match."),
    ("floor", "The best of what is no theory of these networks: a generic Laplace kernel, an AGOP-Laplace kernel "
     "(recursive feature machine), the labels."),
    ("ceiling", "What the scatter between seeds allows. For predictors that do not see the seed: 1 - (1 - R2)/2, R2 "
     "between networks of other inits on the same data. For those that do: the after kernel of another seed."),
    ("lazy theory", "The infinite-width NTK. It is the infinite-width limit of training with richness ntk, and of no "
     "other; the limit at a cell's own richness is extrapolated from the two widest cells."),
    ("after, initial kernel", "The networks' own NTK after and before training."),
    ("richness", "ntk: the NTK parameterization (gamma = 1). A number: gamma = richness · sqrt(width), muP or mean "
     "field. Larger is richer; the kernel motion says how far the kernel moved."),
    ("numbers", "mean ± standard error (number of networks); inits are nested within data draws."),
)  # fmt: skip


def report_page(collected: Collected, title: str = "How well does kernel theory describe the trained networks?") -> str:
    """The whole page, the same text from the same runs."""
    records, found = collected.records, studies(collected.records)
    sections = [
        ("headline", "Headline", _headline(collected)),
        ("reading", "How to read this page", _reading()),
        ("verdicts", "Verdict of each cell", _verdicts(found)),
        ("table", "Main table", _main_table(found)),
    ]
    with styled():
        sections += [
            ("maps", "Width and richness", _each(found, _maps)),
            ("training", "While training", _training(found)),
            ("spectra", "Spectra", _spectra(found)),
            ("widths", "Convergence in width", _each(found, _widths)),
        ]
        sections.insert(1, ("picture", "Main picture", _picture(found)))
    sections += [
        ("limit", "The infinite-width limit at each richness", _each(found, _limits)),
        ("cells", "Cells", cards(records, collected.environments)),
    ]
    return markup.page(title, sections, markup.paragraph(_summary(collected, found)))


def _summary(collected: Collected, found: list[Study]) -> str:
    tasks = sorted({study.task for study in found})
    done = sum(record.status == "done" for record in collected.records)
    return f"{done} of {len(collected.records)} cells done, in {len(found)} studies; tasks: {', '.join(tasks)}."


def _headline(collected: Collected) -> str:
    body = markup.listing(headline(collected.records))
    body += "".join(f'<p class="warning">{escape(warning)}</p>\n' for warning in collected.warnings)
    if problems := collected.problems:
        body += "<p>Not done:</p>\n" + markup.listing(problems)
    return body


def _reading() -> str:
    rows = ((f"<b>{escape(name)}</b>", escape(text)) for name, text in HOW_TO_READ)
    return markup.table(("", ""), rows, text=(0,), long=(1,))


def _verdicts(found: list[Study]) -> str:
    words = {"match": "match", "labels": "labels as well", "no match": "no match", "none": ABSENT}
    rows = []
    for study in found:
        for record in study.records:
            kinds = [verdict(record, predictor).kind for predictor in PREDICTORS]
            badges = [f'<span class="badge {kind.replace(" ", "-")}">{words[kind]}</span>' for kind in kinds]
            rows.append([escape(study.title), escape(cell_label(record)), *badges, escape(cell_sentence(record))])
    note = f"“labels as well”: R2 above {HIGH_R2}, but no skill beyond its error: the labels would match as well."
    head = ["study", "cell", *(NAMES[predictor] for predictor in PREDICTORS), "in words"]
    return markup.paragraph(note) + markup.table(head, rows, text=(0, 1, 2, 3, 4), long=(5,))


def _main_table(found: list[Study]) -> str:
    over = [("", 5), ("networks", 1), *((NAMES[p], 2) for p in PREDICTORS), ("floor", 1), ("labels", 1), ("kernel", 1)]
    head = ["study", "width", "richness", "status", "n", "test error", *["R2", "skill"] * len(PREDICTORS)]
    head += ["skill", "R2", "motion"]
    rows = []
    for study in found:
        for record in study.records:
            status = record.status + (", flagged" if record.status == "done" and flag(record) else "")
            scores = [_bounded(record.score(f"{p}/{metric}")) for p in PREDICTORS for metric in ("r2", "skill")]
            rows.append([
                escape(study.title), width_label(width_of(record)), richness_label(record.card.get("richness")), status,
                seeds_of(record), measured(record.score("network/test_error")), *scores,
                number(floor_skill(record)), measured(record.score("labels/r2")),
                measured(record.score("kernel/motion")),
            ])  # fmt: skip
    return markup.table(head, rows, text=(0, 3), over=over)


def _bounded(score: Score | None) -> str:
    """With its ceiling and floor below, where they are known."""
    if score is None:
        return ABSENT
    bounds = [f"{name} {number(value)}" for name, value in (("ceiling", score.ceiling), ("floor", score.floor))
              if value is not None]  # fmt: skip
    return measured(score) + (f"<br><small>{', '.join(bounds)}</small>" if bounds else "")


def _picture(found: list[Study]) -> str:
    shown = picture.with_skill(found)
    if not shown:
        return ""
    note = (
        "Skill against richness. Zero is the labels themselves; below it, the scale shows how much better the labels "
        "are than the prediction (-1: their squared distance to the network is half of the prediction's)."
    )
    return markup.paragraph(note) + svg(picture.draw(shown))


def _maps(study: Study) -> str:
    figure = heatmaps.draw(study)
    if figure is None:
        return ""
    body = svg(figure)
    for width, crossings in heatmaps.transition_table(study):
        values = ", ".join(f"{richness:.2g}" for richness in crossings)
        body += markup.paragraph(f"Width {width_label(width)}: the kernel motion crosses 1 at richness {values}.")
    seeds = ", ".join(sorted({seeds_of(record) for record in study.records}))
    line = (
        "Dashed: kernel motion 1, from lazy to rich."
        if heatmaps.is_crossed(study)
        else "The kernel motion crosses 1 nowhere."
    )
    return markup.paragraph(f"Mean ± standard error over {seeds} networks. {line}") + body


def _training(found: list[Study]) -> str:
    body = _figures(found, curves.draw)
    if not body:
        return ""
    note = "Regression with the kernel K_t of the moment, against the trained network. A thin line is a network."
    entries = (
        ("skill of K_t, its test error", COLOURS["after"], "solid"),
        ("R2 of K_t", COLOURS["after"], "dashed"),
        ("test error of the network", COLOURS["network"], "solid"),
        ("kernel motion; kernel distance", COLOURS["kernel"], "solid"),
        ("kernel-target alignment", COLOURS["kernel"], "dashed"),
        ("labels themselves", COLOURS["labels"], "dashed"),
    )
    return markup.paragraph(note) + markup.legend(entries) + body


def _spectra(found: list[Study]) -> str:
    body = _figures(found, spectra.draw)
    entries = ((NAMES[p].replace("lazy theory", "infinite width"), COLOURS[p], "solid") for p in PREDICTORS)
    return markup.legend(entries) + body if body else ""


def _widths(study: Study) -> str:
    figure = slopes.draw(study)
    if figure is None:
        return ""
    entries = [(f"richness {label}", colour, "solid") for label, colour in slopes.richness_colours(study).items()]
    rows = [
        [
            escape(name),
            richness_label(law.richness),
            f"{law.slope:.2f} ± {law.slope_error:.2f} ({len(law.widths)} widths)",
        ]
        for quantity, name in QUANTITIES.items()
        for law in power_laws(study, quantity)
    ]
    note = "Theory for richness ntk: all fall as width to the power -1/2. Rich cells need not: their limit is not lazy."
    return markup.legend(entries) + svg(figure) + markup.paragraph(note) + markup.table(
        ("quantity", "richness", "fitted slope"), rows, text=(0,)
    )  # fmt: skip


def _limits(study: Study) -> str:
    found = list(extrapolations(study))
    if not found:
        return ""
    note = (
        "The ensemble mean extrapolated in 1/width from the two widest cells, scored against the networks of each "
        "cell, next to the lazy theory. The second error is what the scatter of the inits in these means does. A cell "
        "marked * is one of the two that the mean was made of."
    )
    head = [
        "richness",
        "widths",
        "cell",
        "R2",
        "from inits",
        "lazy R2",
        "ceiling R2",
        "skill",
        "from inits",
        "lazy skill",
    ]
    return markup.paragraph(note) + markup.table(head, [_limit_row(one) for one in found])


def _limit_row(one: Extrapolated) -> list[str]:
    record, width = one.record, width_of(one.record)
    lazy_r2, lazy_skill = record.score("infinite_ntk/r2"), record.score("infinite_ntk/skill")
    return [
        richness_label(record.card.get("richness")),
        ", ".join(width_label(w) for w in one.widths),
        f"width {width_label(width)}" + ("*" if width in one.widths else ""),
        measured(one.r2),
        f"± {number(one.r2_error, one.r2_error)}",
        measured(lazy_r2),
        number(lazy_r2.ceiling if lazy_r2 else None),
        measured(one.skill),
        f"± {number(one.skill_error, one.skill_error)}",
        measured(lazy_skill),
    ]


def _each(found: list[Study], section: Callable[[Study], str]) -> str:
    """A section that is made study by study; studies with nothing to show are left out."""
    return "".join(f"<h3>{escape(study.title)}</h3>\n{body}" for study in found if (body := section(study)))


def _figures(found: list[Study], draw: Callable[[Study], Iterator[Figure]]) -> str:
    def body(study: Study) -> str:
        return "\n".join(svg(figure) for figure in draw(study))

    return _each(found, body)
