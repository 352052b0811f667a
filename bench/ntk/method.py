"""The ways to compute an empirical NTK."""

from enum import StrEnum


class Method(StrEnum):
    """N samples, c outputs, P parameters, T tokens or positions, layers from d_in to d_out; F: FLOPs of one forward
    pass of a sample."""

    AUTO = "auto"
    LAYERWISE = "layerwise"
    JACOBIAN = "jacobian"
