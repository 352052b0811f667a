"""The suite's own claims, a file a subject; each lists its ``CLAIMS`` and ``MEASUREMENTS``."""

REDRAWN = "Moved on 2026-11-28, by five redraws on seeds 10,000 to 14,999."
"""How windows were set that had lain within four deviations of one seed, or asked more than their seeds could show."""
