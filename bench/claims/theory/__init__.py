"""The suite's own claims, a file a subject; each lists its ``CLAIMS`` and ``MEASUREMENTS``."""

REDRAWN = "Moved on 2026-11-28, by five redraws on seeds 10,000 to 14,999."
"""How windows were set that had lain within four deviations of one seed, or asked more than their seeds could show."""
RESIZED = "Size, gap or scale set on 2026-11-28, by the scatter in redraws on seeds 10,000 to 39,999."
"""Of claims whose seeds scatter, now and then, by so much that ``gap`` could not have been seen."""
