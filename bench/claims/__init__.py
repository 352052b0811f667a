"""Theory claims as regression tests, each with a control that must fail: ``python -m bench.claims``."""

from bench.claims.claim import Claim, Control, Measurement, Window, predicted
from bench.claims.registry import built_in as claims
from bench.claims.run import check

__all__ = ["Claim", "Control", "Measurement", "Window", "check", "claims", "predicted"]
