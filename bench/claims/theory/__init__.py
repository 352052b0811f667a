"""The suite's own claims, a file a subject; each lists its ``CLAIMS`` and ``MEASUREMENTS``."""
