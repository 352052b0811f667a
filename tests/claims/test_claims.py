"""Every claim of the suite at CPU size: as on record, and each control rejected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from bench.claims import Claim, check, claims
from bench.claims.claim import Control, Window
from bench.claims.formats import document, table
from bench.claims.run import Measured, Outcome, Result, Skipped, verdict
from bench.report.claims import write_claims

CLAIMS = {name: item for name, item in claims().items() if isinstance(item, Claim)}


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Result]:
    """Everything in one run: claims share studies, and studies share the cores."""
    found = check(list(claims().values()), tmp_path_factory.mktemp("studies"))
    write_claims(document(found, "cpu", 0), tmp_path_factory.mktemp("report"))
    return {result.item.name: result for result in found}


def outcome_of(name: str, results: Mapping[str, Result]) -> Outcome:
    result = results[name]
    if isinstance(result, Skipped):
        pytest.skip(result.reason)
    assert isinstance(result, Outcome)
    return result


def assert_controls_are_rejected(outcome: Outcome) -> None:
    assert outcome.controls
    assert all(control.verdict == control.expected for control in outcome.controls), table([outcome])


@pytest.mark.claim
@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_as_on_record(name: str, results: Mapping[str, Result]) -> None:
    outcome = outcome_of(name, results)
    assert outcome.verdict == outcome.claim.recorded, table([outcome])


@pytest.mark.claim
@pytest.mark.parametrize("name", CLAIMS)
def test_every_control_is_rejected(name: str, results: Mapping[str, Result]) -> None:
    assert_controls_are_rejected(outcome_of(name, results))


@pytest.mark.claim
def test_every_measurement_is_made(results: Mapping[str, Result]) -> None:
    failed = [table([result]) for result in results.values() if isinstance(result, Measured) and not result.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("recorded", ["holds", "refuted"])
def test_a_control_that_passes_and_a_missing_one_are_found(recorded: str) -> None:
    """The test above can fail: a claim whose control is not wrong, and one that has none."""
    inside, outside = ({"a": [0.5, 0.6, 0.4]}, {"a": [5.0, 5.1, 4.9]})
    own, other = (inside, outside) if recorded == "holds" else (outside, inside)
    claim = Claim(
        name="any", statement="Any.", source="here", kind="theorem", requests=lambda size, seeds: [],
        statistics=lambda records: own, windows={"a": Window(0, 1, gap=3)},
        controls=[Control("other", lambda records: other)], power="any", recorded=recorded, alpha=0.01,
    )  # fmt: skip
    good = verdict(claim, (), 0.0, 3)
    assert_controls_are_rejected(good)
    assert good.passed
    toothless = verdict(replace(claim, controls=[Control("nothing", lambda records: own)]), (), 0.0, 3)
    assert toothless.verdict == recorded
    assert not toothless.passed
    with pytest.raises(AssertionError, match="NOT"):
        assert_controls_are_rejected(toothless)
    with pytest.raises(AssertionError):
        assert_controls_are_rejected(replace(good, controls=()))
