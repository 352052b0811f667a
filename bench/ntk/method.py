"""The ways to compute an empirical NTK."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """``cost`` and ``use`` of each member: what it takes, and when to choose it.

    N samples, c outputs (1 for ``sum`` or one output), P parameters, F: FLOPs of a forward pass of one sample.
    """

    cost: str
    use: str

    AUTO = (
        "auto",
        "the cheaper of layerwise and jacobian, by counted FLOPs; the plan costs a pass of three samples",
        "by default; explain() says what it chose and why",
    )
    LAYERWISE = (
        "layerwise",
        "one forward and c backward passes of N samples, then for each layer the cheaper of N^2 c^2 (d_in + d_out) T^2 "
        "FLOPs (two Gram matrices, T positions) and N^2 c^2 P_layer (per-sample gradients); parameters that no rule "
        "knows take passes of their own",
        "whenever rules hold for most parameters: far the fastest for linear layers",
    )
    JACOBIAN = (
        "jacobian",
        "N c passes by torch.func in chunks, N^2 c^2 P FLOPs, N c P numbers (in tiles where they do not fit)",
        "where no rule holds for most parameters, and to check the others",
    )
    MATRIX_FREE = (
        "matrix_free",
        "3 N F FLOPs a product and the memory of one batch; the dense kernel N c products",
        "as_operator(), where the kernel does not fit: CG and Lanczos need products only",
    )

    def __new__(cls, value: str, cost: str, use: str) -> Method:
        member = str.__new__(cls, value)
        member._value_ = value
        member.cost = cost
        member.use = use
        return member
