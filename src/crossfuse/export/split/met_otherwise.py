"""Why tokens of the context that meet those of queries in one tensor don't stand in front of them:
they stand behind, or where they stand is computed from the queries.

The second is how models put an image's features in the place of placeholders among a text's ids:
scattered there, or taken one by one at places that are counted from the ids.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crossfuse.export.split.dependence import Content, Dependence, queries_behind
from crossfuse.export.split.token_axes import own_axis
from crossfuse.graph.attention_node import is_attention
from crossfuse.graph.metadata import module_path
from crossfuse.graph.op_classes import MOVING_OPS, is_onnx
from crossfuse.graph.shapes import rank_of

__all__ = ["met_otherwise"]

_JOINED_BY: Mapping[str, slice] = {
    "Concat": slice(0, None),
    "Where": slice(1, None),
    **dict.fromkeys(("ScatterND", "ScatterElements"), slice(0, None, 2)),
}
"""Operators that put tokens of different origin into one tensor, and which of their operands hold
those."""

_PLACES: Mapping[str, int] = {"Where": 0, "ScatterND": 1, "ScatterElements": 1}
"""Which operand says where the tokens go."""

_TAKES = frozenset({"Gather", "GatherND", "GatherElements"})


def met_otherwise(dependence: Dependence, node: ir.Node) -> str | None:
    """Why the context's tokens are not in front, where a node joins them with those of queries.

    Args:
        dependence: of the graph's values.
        node: any.

    Returns:
        The reason, with the node's module; None where the node joins no such tokens.
    """
    data = _JOINED_BY.get(node.op_type) if is_onnx(node) else None
    operands = [v for v in node.inputs[data] if v is not None] if data is not None else []
    if not _meet(dependence, operands):
        return None
    where = module_path(node) or node.op_type
    if node.op_type == "Concat":
        last = own_axis(node, 0) + 1 == rank_of(node.outputs[0])
        behind = f"{where}: the context's tokens stand behind those of the queries"
        return None if last else behind
    if not _comes_to_attention(node):
        return None
    places = node.inputs[_PLACES[node.op_type]]
    names = sorted(queries_behind(places, dependence)) if places is not None else []
    by = ", by ".join([node.op_type, *([", ".join(names)] if names else [])])
    return f"{where}: where the context's tokens stand is computed from the queries ({by})"


def _meet(dependence: Dependence, operands: list[ir.Value]) -> bool:
    """Some of the operands are of the context, or elements of it at places that queries decide, and
    others of queries alone."""
    behind = [dependence.of(v) for v in operands]
    of_context = (
        content == Content.CONTEXT or _taken_by_queries(dependence, value)
        for value, content in zip(operands, behind, strict=True)
    )
    return any(content == Content.QUERY for content in behind) and any(of_context)


def _taken_by_queries(dependence: Dependence, value: ir.Value) -> bool:
    """Its elements are the context's, taken at places that queries decide."""
    node = value.producer()
    while node is not None and is_onnx(node) and node.inputs and node.inputs[0] is not None:
        source = node.inputs[0]
        if node.op_type in _TAKES and dependence.of(source) == Content.CONTEXT:
            return Content.QUERY in dependence.of(node.inputs[1])
        if node.op_type not in MOVING_OPS - {"Concat"}:
            return False
        node = source.producer()
    return False


def _comes_to_attention(node: ir.Node) -> bool:
    """An attention is computed from what the node makes."""
    seen, pending = set[ir.Node](), [node]
    while pending:
        current = pending.pop()
        for user in (user for out in current.outputs for user, _ in out.uses()):
            if is_attention(user):
                return True
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return False
