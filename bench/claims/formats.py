"""Outcomes for people (a table) and for machines (JSON, JUnit)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from bench import store
from bench.claims.judge import Check
from bench.claims.run import ControlOutcome, Measured, Outcome, Result, Skipped


def table(outcomes: Sequence[Result]) -> str:
    """One line a claim, one a statistic below it."""
    lines = []
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            lines.append(f"skipped       {outcome.item.name}: {outcome.item.statement}")
        elif isinstance(outcome, Measured):
            lines.append(f"measured      {outcome.measurement.name}: {outcome.measurement.statement}")
            lines += [f"                {s.name} = {s.value:.4g} ± {s.standard_error:.2g} (n={s.n_seeds})"
                      for s in outcome.scores]  # fmt: skip
        else:
            flag = " " if outcome.passed else "!"
            lines.append(f"{flag} {outcome.verdict:<13}{outcome.claim.name}: {outcome.claim.statement}")
            lines += [f"                {one_line(check)}" for check in outcome.checks]
            lines += [f"                control: {_control(control)}" for control in outcome.controls]
            if outcome.verdict != outcome.claim.recorded:
                lines.append(f"                on record: {outcome.claim.recorded}")
        if outcome.reason:
            lines.append(f"                {outcome.reason}")
    return "\n".join(lines)


def summary(outcomes: Sequence[Result]) -> str:
    claims = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    counts = ", ".join(
        f"{sum(outcome.verdict == verdict for outcome in claims)} {verdict}"
        for verdict in ("holds", "refuted", "inconclusive")
    )
    wrong = [outcome for outcome in outcomes if not outcome.passed]
    measured = sum(isinstance(outcome, Measured) for outcome in outcomes)
    skipped = sum(isinstance(outcome, Skipped) for outcome in outcomes)
    left_out = f"; {skipped} skipped" if skipped else ""
    ending = "every verdict is the one on record" if not wrong else f"{len(wrong)} not as on record"
    return f"{len(claims)} claims: {counts}; {measured} measurements{left_out}; {ending}."


def one_line(check: Check) -> str:
    """``slope = -0.48 ± 0.02 (n=8) in [-0.6, -0.38], 6.1 sd inside``."""
    bounds = f"in [{check.low:.4g}, {check.high:.4g}]"
    if check.low == check.high:
        bounds = f"predicted {check.low:.4g}"
    elif math.isinf(check.low):
        bounds = f"<= {check.high:.4g}"
    elif math.isinf(check.high):
        bounds = f">= {check.low:.4g}"
    error = "" if math.isnan(check.standard_error) else f" ± {check.standard_error:.2g}"
    return f"{check.name} = {check.value:.4g}{error} (n={len(check.values)}) {bounds}: {check.verdict}"


def document(outcomes: Sequence[Result], size: str, first_seed: int) -> dict[str, Any]:
    """What ``--json`` writes."""
    claims = [_claim(outcome) for outcome in outcomes if isinstance(outcome, Outcome)]
    measurements = [_measurement(outcome) for outcome in outcomes if isinstance(outcome, Measured)]
    skipped = [{"name": o.item.name, "reason": o.reason} for o in outcomes if isinstance(o, Skipped)]
    return store.plain(
        {"size": size, "first_seed": first_seed, "claims": claims, "measurements": measurements, "skipped": skipped}
    )


def junit(outcomes: Sequence[Result]) -> str:
    """JUnit XML: a test case a claim or measurement, failed where it is not as on record."""
    failures = sum(not outcome.passed for outcome in outcomes)
    skipped = sum(isinstance(outcome, Skipped) for outcome in outcomes)
    suite = ElementTree.Element(
        "testsuite", name="widebench claims", tests=str(len(outcomes)), failures=str(failures), errors="0",
        skipped=str(skipped), time=f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    )  # fmt: skip
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname="claims", name=outcome.item.name, time=f"{outcome.seconds:.3f}"
        )
        text = _xml_text(table([outcome]))
        if isinstance(outcome, Skipped):
            ElementTree.SubElement(case, "skipped", message=_xml_text(outcome.reason))
        if not outcome.passed:
            ElementTree.SubElement(case, "failure", message=_xml_text(_why(outcome))).text = text
        ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _why(outcome: Result) -> str:
    """In one sentence, why it did not pass."""
    if outcome.reason or not isinstance(outcome, Outcome):
        return outcome.reason
    if outcome.verdict != outcome.claim.recorded:
        return f"{outcome.verdict}, not {outcome.claim.recorded} as on record"
    kept = [control.wrong for control in outcome.controls if control.verdict != control.expected]
    return f"control not rejected: {'; '.join(kept)}"


def _xml_text(text: str) -> str:
    """Without the control characters that XML cannot hold, as a study's error message may have them."""
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _claim(outcome: Outcome) -> dict[str, Any]:
    claim = outcome.claim
    return {
        "name": claim.name, "verdict": outcome.verdict, "recorded": claim.recorded, "passed": outcome.passed,
        "statement": claim.statement, "source": claim.source, "kind": claim.kind, "alpha": claim.alpha,
        "power": claim.power, "calibration": claim.calibration,
        "statistic": {check.name: _check(check) for check in outcome.checks},
        "control": [
            {"wrong": control.wrong, "verdict": control.verdict, "expected": control.expected,
             "statistic": {check.name: _check(check) for check in control.checks}}
            for control in outcome.controls
        ],
        "seconds": outcome.seconds, "reason": outcome.reason,
    }  # fmt: skip


def _check(check: Check) -> dict[str, Any]:
    return {
        "value": check.value, "standard_error": check.standard_error, "margin": check.margin, "low": check.low,
        "high": check.high, "distance": check.distance, "n_seeds": len(check.values), "values": check.values,
        "every": check.every, "verdict": check.verdict,
    }  # fmt: skip


def _measurement(outcome: Measured) -> dict[str, Any]:
    item = outcome.measurement
    return {
        "name": item.name, "statement": item.statement, "source": item.source,
        "statistic": {
            s.name: {"value": s.value, "standard_error": s.standard_error, "n_seeds": s.n_seeds, "values": s.per_member}
            for s in outcome.scores
        },
        "seconds": outcome.seconds, "reason": outcome.reason,
    }  # fmt: skip


def _control(control: ControlOutcome) -> str:
    rejected = "rejected" if control.expected == "refuted" else "passes"
    said = rejected if control.verdict == control.expected else f"NOT {rejected} ({control.verdict})"
    worst = min(control.checks, key=lambda check: check.distance)
    return f"{control.wrong}: {said}; {worst.name} = {worst.value:.4g}"
