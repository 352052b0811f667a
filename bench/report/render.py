"""The page: sections in the order in which a reader asks, each from the records and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import TYPE_CHECKING

from bench.record import Record
from bench.report import curves, heatmaps, markup, picture, slopes, spectra
from bench.report.cards import cards
from bench.report.collect import Collected
from bench.report.extrapolate import Extrapolated, extrapolations
from bench.report.figures import COLOURS, styled, svg
from bench.report.formats import ABSENT, bare, compact, measured, number
from bench.report.studies import Study, cell_label, richness_label, rows, studies, width_label, width_of
from bench.report.tables import seeds_of
from bench.report.verdicts import (
    ERRORS,
    HIGH_R2,
    NAMES,
    PREDICTORS,
    SEED_SPECIFIC,
    WEAK_SKILL,
    cells,
    flag,
    floor_skill,
    headline,
    no_verdict,
    unavailable,
    verdict,
)
from bench.report.widths import QUANTITIES, THEORY, power_laws

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW_TO_READ = (
    ("What is compared", "Every predictor is a kernel regression that was fitted to the training labels. It is "
     "compared with f_T, the outputs of the trained networks on test points: not with the labels."),
    ("R2", "1 - |p - f_T|² / |f_T - mean|². High for anything that generalises: where the networks have learnt their "
     "target, the labels themselves score .99."),
    ("skill", "1 - |p - f_T|² / |y - f_T|², y the clean test labels. 0: no better a description of the network than "
     "the labels; 1: the network itself; negative: worse than the labels."),
    ("match", f"Skill above 0, and above every floor, by {ERRORS:g} standard errors. Nothing else is called a match. "
     f"It is a weak one with a skill below {WEAK_SKILL}: not far better than the labels, whatever its R2."),
    ("floor", "The best of what is no theory of these networks: a generic Laplace kernel, an AGOP-Laplace kernel "
     "(recursive feature machine), the labels."),
    ("ceiling", "What the scatter between seeds allows a predictor that does not see the seed (the lazy theory, the "
     "floors): 1 - (1 - R2)/2, with R2 between networks of other inits on the same data."),
    ("other seed", "For a predictor that does see the seed (after, initial): what the after kernel of another seed "
     "scores. Not a bound: the after kernel should be above it."),
    ("lazy theory", "The infinite-width NTK. It is the infinite-width limit of training with richness ntk, and of no "
     "other; the limit at a cell's own richness is extrapolated from the two widest cells."),
    ("after, initial kernel", "The networks' own NTK (neural tangent kernel) after and before training."),
    ("richness", "ntk: the NTK parameterization (gamma = 1). A number: gamma = richness · sqrt(width), muP or mean "
     "field. Larger is richer; the kernel motion says how far the kernel moved."),
    ("test error", "|f - y|² / |y|² on the test points, y the clean labels: 1 is the error of answering zero."),
    ("kernel motion", "|K_T - K_0| / |K_0|, Frobenius norms on the training points; distance: 1 - cosine of K_T, K_0."),
    ("numbers", "mean ± standard error (number of networks); inits are nested within data draws. With two data draws "
     "the error itself is rough, and often too small by half: seeds.data=12 gives a better one."),
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
            ("maps", "Width and richness", _maps(found)),
            ("training", "While training", _training(found)),
            ("spectra", "Spectra", _spectra(found)),
            ("widths", "Convergence in width", _widths(found)),
        ]
        sections.insert(1, ("picture", "Main picture", _picture(found)))
    sections += [
        ("limit", "The infinite-width limit at each richness", _limits(found)),
        ("cells", "Result card of each cell", cards(records, collected.environments)),
    ]
    return markup.page(title, sections, markup.paragraph(_summary(collected, found)))


def _summary(collected: Collected, found: list[Study]) -> str:
    tasks = sorted({study.task for study in found})
    done = sum(record.status == "done" for record in collected.records)
    of = f"{done} of {cells(len(collected.records))} done, in {len(found)} stud{'y' if len(found) == 1 else 'ies'}"
    return f"{of}; tasks: {', '.join(tasks)}."


def _headline(collected: Collected) -> str:
    body = markup.listing(headline(collected.records))
    body += "".join(f'<p class="warning">{escape(warning)}</p>\n' for warning in collected.warnings)
    if problems := collected.problems:
        body += "<p>Not done:</p>\n" + markup.listing(problems)
    if missing := unavailable(collected.records):
        body += "<p>Not available:</p>\n" + markup.listing(missing)
    return body


def _reading() -> str:
    rows = ((f"<b>{escape(name)}</b>", escape(text)) for name, text in HOW_TO_READ)
    return markup.table(("", ""), rows, text=(0,), long=(1,))


def _verdicts(found: list[Study]) -> str:
    rows = []
    for study in found:
        for record in study.records:
            badges = [_badge(record, predictor) for predictor in PREDICTORS]
            rows.append([escape(study.title), escape(cell_label(record)), *badges, number(floor_skill(record)),
                         escape(no_verdict(record))])  # fmt: skip
    note = (
        "Beside each verdict the skill that it rests on. “weak match”: beyond the labels and the floor, but with a "
        f"skill below {WEAK_SKILL}. “labels as well”: R2 above {HIGH_R2}, but no skill beyond its error: the labels "
        "would match as well."
    )
    head = ["study", "cell", *(NAMES[predictor] for predictor in PREDICTORS), "floor", "why no verdict"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return markup.paragraph(note) + markup.table(head, rows, text=range(1, 5), long=(0, 6))


def _badge(record: Record, predictor: str) -> str:
    words = {"match": "match", "weak": "weak match", "labels": "labels as well", "no match": "no match", "none": ABSENT}
    kind = verdict(record, predictor).kind
    badge = f'<span class="badge {kind.replace(" ", "-")}">{words[kind]}</span>'
    score = record.score(f"{predictor}/skill")
    return badge if score is None else f"{badge} <small>{measured(score)}</small>"


def _main_table(found: list[Study]) -> str:
    over = [("", 5), ("networks", 1), *((NAMES[p], 2) for p in PREDICTORS), ("floor", 1), ("labels", 1), ("kernel", 1)]
    head = ["study", "width", "richness", "status", "n", "test error", *["R2", "skill"] * len(PREDICTORS)]
    head += ["skill", "R2", "motion"]
    rows = []
    for study in found:
        for record in study.records:
            status = record.status + (", flagged" if record.status == "done" and flag(record) else "")
            scores = [_bounded(record, p, metric) for p in PREDICTORS for metric in ("r2", "skill")]
            plain = [record.score(name) for name in ("network/test_error", "labels/r2", "kernel/motion")]
            error, labels, motion = (compact(score) for score in plain)
            rows.append([
                escape(study.title), width_label(width_of(record)), richness_label(record.card.get("richness")), status,
                seeds_of(record), error, *scores, bare(number(floor_skill(record))), labels, motion,
            ])  # fmt: skip
    note = "Mean ± standard error over n networks; small: the ceiling, or the score of another seed's after kernel."
    return markup.paragraph(note) + markup.table(head, rows, text=(3,), long=(0,), over=over)


def _bounded(record: Record, predictor: str, metric: str) -> str:
    """With its ceiling below, where it is known."""
    score = record.score(f"{predictor}/{metric}")
    if score is None or score.ceiling is None:
        return compact(score)
    name = "other seed" if predictor in SEED_SPECIFIC else "ceiling"
    return f"{compact(score)}<br><small>{name} {bare(number(score.ceiling))}</small>"


def _picture(found: list[Study]) -> str:
    shown = picture.with_skill(found)
    if not shown:
        return ""
    note = (
        "Skill against richness. Zero is the labels themselves; below it, the scale shows how much better the labels "
        "are than the prediction (-1: their squared distance to the network is half of the prediction's)."
    )
    if any(flag(record) for study in shown for record in study.records):
        note += " Hollow: the cell carries no verdict."
    return markup.paragraph(note) + svg(picture.draw(shown))


def _maps(found: list[Study]) -> str:
    body = _each(found, _map)
    note = (
        "Mean ± standard error over the networks of each cell. Colours of skill: blue above the labels, red below. "
        "Dashed: kernel motion 1, from lazy to rich."
    )
    if any(flag(record) for study in found for record in study.records):
        note += " *: the cell carries no verdict."
    return markup.paragraph(note) + body if body else ""


def _map(study: Study) -> str:
    figure = heatmaps.draw(study)
    if figure is None:
        return ""
    crossings = [
        f"{', '.join(f'{richness:.2g}' for richness in values)} (width {width_label(width)})"
        for width, values in heatmaps.transition_table(study)
    ]
    line = "The kernel motion crosses 1 nowhere."
    if crossings:
        line = f"The kernel motion crosses 1 at richness {', '.join(crossings)}."
    elif heatmaps.is_crossed(study):
        line = "The kernel motion crosses 1 between widths only."
    seeds = ", ".join(sorted({seeds_of(record) for record in study.records} - {ABSENT}))
    return markup.paragraph(f"Networks a cell: {seeds}. {line}") + svg(figure)


def _training(found: list[Study]) -> str:
    body = _figures(found, curves.draw)
    if not body:
        return ""
    note = "Regression with the kernel K_t of the moment, against the trained network. A thin line is a network."
    entries = (
        ("skill of K_t, its test error", COLOURS["after"], "solid"),
        ("R2 of K_t", COLOURS["after"], "dashed"),
        ("test error of the network", COLOURS["network"], "solid"),
        ("of the network linearised at its start", COLOURS["initial"], "solid"),
        ("kernel motion; kernel distance", COLOURS["kernel"], "solid"),
        ("kernel-target alignment", COLOURS["kernel"], "dashed"),
        ("the same on test points", COLOURS["kernel"], "dotted"),
        ("labels themselves", COLOURS["labels"], "dashed"),
    )
    return markup.paragraph(note) + markup.legend(entries) + body


def _spectra(found: list[Study]) -> str:
    body = _figures(found, spectra.draw)
    if not body:
        return ""
    drawn = [p for p in PREDICTORS if any(rows(r, spectra.ARRAYS[p]) is not None for s in found for r in s.records)]
    entries = (
        (NAMES[p].replace("lazy theory", "infinite-width kernel"), COLOURS[p],
         "dashed" if p == "infinite_ntk" else "solid")
        for p in drawn
    )  # fmt: skip
    note = (
        "Eigenvalues of K/N on the training points (several outputs: of the trace over outputs), the geometric mean "
        "over the networks. With gradient flow, the eigenmode of the eigenvalue λ of K/N is learnt in a time 1/λ."
    )
    return markup.paragraph(note) + markup.legend(entries) + body


def _widths(found: list[Study]) -> str:
    body = _each(found, _width)
    note = (
        "Each quantity against the width, with its fitted power law; cells of one richness that have three widths or "
        "more. The initial kernel does not depend on the richness: there the lines coincide. The error of a slope is "
        "the larger of what the seeds and what the scatter around the line say."
    )
    return markup.paragraph(note) + body if body else ""


def _width(study: Study) -> str:
    figure = slopes.draw(study)
    if figure is None:
        return ""
    entries = [(f"richness {label}", colour, "solid") for label, colour in slopes.richness_colours(study).items()]
    rows = [
        [
            escape(name),
            richness_label(law.richness),
            f"{law.slope:.2f} ± {law.slope_error:.2f} ({len(law.widths)} widths)",
            THEORY[quantity][law.richness != "ntk"],
        ]
        for quantity, name in QUANTITIES.items()
        for law in power_laws(study, quantity)
    ]
    head = ("quantity", "richness", "fitted power of the width", "theory")
    return markup.legend(entries) + svg(figure) + markup.table(head, rows, text=(0,))


def _limits(found: list[Study]) -> str:
    body = _each(found, _limit)
    note = (
        "The ensemble mean extrapolated in 1/width from the two widest cells, (n2 mean2 - n1 mean1)/(n2 - n1), scored "
        "against the networks of each cell, next to the lazy theory. The scatter of a mean of few inits costs score: "
        "what it costs on average is added back, and “mean's ±” is what it may still do. *: the cell is one of the "
        "two; there each network is left out of its own mean."
    )
    return markup.paragraph(note) + body if body else ""


def _limit(study: Study) -> str:
    head = ["richness", "mean of widths", "cell", "R2", "mean's ±", "lazy R2", "ceiling R2", "skill", "mean's ±",
            "lazy skill"]  # fmt: skip
    rows = [_limit_row(one) for one in extrapolations(study)]
    return markup.table(head, rows) if rows else ""


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
