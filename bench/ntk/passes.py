"""Which layers are kept at a time: all of them, or one group after another, each with a pass of its own.

What is kept of all samples is most of the memory that a kernel takes besides its own. Layers' kernels add up, so that
their factors and gradients need not be there together; what that costs is further passes, each forward through all of
the network and back to the earliest layer of its group. With several outputs, of which each takes a backward pass, and
with layers near the outputs that is cheap.
"""

from __future__ import annotations

from dataclasses import replace

from bench.ntk.plan import Part, Plan

EXTRA = 0.1
"""Of all FLOPs may go into further passes where there is memory enough for one."""
SMALL = 2**22
"""Bytes that are not worth a further pass."""


def passes(plan: Plan, samples: int, room: float, again: float) -> list[Plan] | None:
    """The plan's parts, in groups of which each keeps at most ``room`` bytes of all samples of a member.

    Of the groupings that cost little the one of least memory, else the cheapest that fits. ``again``: how often every
    sample passes where tiles make their layers anew; None: that is cheaper than what fits, or nothing does.
    """
    candidates = []
    for groups in _groupings(plan, samples):
        kept = max(samples * sum(part.bytes_per_sample for part in group) for group in groups)
        candidates.append((kept, samples * _extra(plan, groups), groups))
        if kept <= SMALL:
            break
    fit = [candidate for candidate in candidates if candidate[0] <= room]
    cheap = [candidate for candidate in fit if candidate[1] <= EXTRA * plan.flops / plan.members]
    if cheap:
        return _plans(plan, min(cheap, key=lambda candidate: candidate[0])[2])
    least = min(fit, key=lambda candidate: candidate[1], default=None)
    if least is None or least[1] > (again - 1) * samples * plan.cost_from(0):
        return None
    return _plans(plan, least[2])


def _groupings(plan: Plan, samples: int) -> list[list[list[Part]]]:
    """Of neighbouring layers, from one group to one of each layer. Filled from the first layer on: so the last group,
    whose pass is short, is not the fullest."""
    layers = [[part for part in plan.parts if part.call is None]]
    layers += [[part for part in plan.parts if part.call == index] for index in range(len(plan.calls))]
    layers = [layer for layer in layers if layer]
    sizes = [sum(part.bytes_per_sample for part in layer) for layer in layers]
    found: list[list[list[Part]]] = []
    for count in range(1, len(layers) + 1):
        limit = 1.1 * max(sum(sizes) / count, *sizes)
        while len(groups := _filled(layers, sizes, limit)) > count:
            limit *= 1.1
        if not found or len(groups) > len(found[-1]):
            found.append(groups)
    return found


def _filled(layers: list[list[Part]], sizes: list[float], limit: float) -> list[list[Part]]:
    groups: list[list[Part]] = [[]]
    size = 0.0
    for layer, own in zip(layers, sizes, strict=True):
        if groups[-1] and size + own > limit:
            groups.append([])
            size = 0.0
        groups[-1] += layer
        size += own
    return groups


def _extra(plan: Plan, groups: list[list[Part]]) -> float:
    """FLOPs a sample of the groups' passes beyond those of one pass."""
    firsts = [min((part.call for part in group if part.call is not None), default=None) for group in groups]
    costs = [plan.cost_from(first) for first in firsts if first is not None]
    return sum(costs) - max(costs, default=0.0)


def _plans(plan: Plan, groups: list[list[Part]]) -> list[Plan]:
    chosen = [{id(part) for part in group} for group in groups]
    return [replace(plan, parts=tuple(part for part in plan.parts if id(part) in own)) for own in chosen]
