"""The batch that contexts and queries share before a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx_ir as ir

from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.mixing import mixing
from crossfuse.graph.shapes import dim_of, rank_of

__all__ = ["shared_batch"]


def shared_batch(graph: ir.Graph, context: Collection[str]) -> str | None:
    """The dimension of both context and query inputs that counts samples; None where there is none.

    It is the first axis of some of both: of several such dimensions, that of most inputs.
    Where there is none, or where values mix what is along it, and the second axis is shared as well
    and nothing mixes what is along that, it is the second: sequences may come first.
    """
    first, second = _common(graph, context, 0), _common(graph, context, 1)
    if second is None:
        return first
    dependence = Dependence(graph, context)
    if first is not None and not mixing(graph, dependence, first, met=True):
        return first
    return first if mixing(graph, dependence, second, met=True) else second


def _common(graph: ir.Graph, context: Collection[str], axis: int) -> str | None:
    """The name that most inputs have at an axis, of those of both contexts and queries; an input
    has another axis behind its second."""
    found: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for value in graph.inputs:
        size = dim_of(value, axis) if (rank_of(value) or 0) > 2 * axis else None
        if isinstance(size, str):
            found[value.name in context][size] += 1
    both = found[0].keys() & found[1].keys()
    total = found[0] + found[1]
    return min(both, key=lambda name: (-total[name], name), default=None)
