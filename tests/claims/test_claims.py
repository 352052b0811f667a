"""Every claim of the suite at CPU size: as on record, and each control rejected."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bench.claims import Claim, check, claims
from bench.claims.formats import document, table
from bench.claims.run import Outcome
from bench.report.claims import write_claims

CLAIMS = {name: item for name, item in claims().items() if isinstance(item, Claim)}


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """Everything in one run: claims share studies, and studies share the cores."""
    found = check(list(claims().values()), tmp_path_factory.mktemp("studies"))
    write_claims(document(found, "cpu", 0), tmp_path_factory.mktemp("report"))
    failed = [table([outcome]) for outcome in found if not isinstance(outcome, Outcome) and not outcome.passed]
    assert not failed, "\n".join(failed)  # measurements
    return {outcome.claim.name: outcome for outcome in found if isinstance(outcome, Outcome)}


@pytest.mark.claim
@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_as_on_record(name: str, outcomes: Mapping[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert outcome.verdict == outcome.claim.recorded, table([outcome])


@pytest.mark.claim
@pytest.mark.parametrize("name", CLAIMS)
def test_every_control_is_rejected(name: str, outcomes: Mapping[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert outcome.controls
    assert all(control.verdict == control.expected for control in outcome.controls), table([outcome])
