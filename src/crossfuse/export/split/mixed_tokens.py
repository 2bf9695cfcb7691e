"""What makes a token's rows of other tokens otherwise than by attention: convolutions, recurrent
layers, pools, running sums, shifts. A step is given new tokens and the keys and values of earlier
ones, and could not compute it."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from crossfuse.export.split.mixing import Batch, keeps_apart, runs_along
from crossfuse.graph.attention_node import is_attention

__all__ = ["mixing_node"]

_JOINS = "Concat"
"""Rows in front of the tokens' keys; what else is made of it is found behind."""

_ROOM = "Pad"
"""Room for an operator behind it, which is the one to name."""


def mixing_node(graph: ir.Graph, moving: Collection[ir.Value], axis: str) -> ir.Node | None:
    """The first node that makes what stands for a token of other tokens as well.

    Args:
        graph: of a query stage.
        moving: its values that depend on the tokens' content.
        axis: name of the token axis.
    """
    tokens = Batch.of(graph, axis)
    nodes = (node for node in graph if node.outputs[0] in moving and not is_attention(node))
    found = next((node for node in nodes if _mixes(node, moving, tokens)), None)
    if found is None or found.op_type != _ROOM:
        return found
    return next((use.node for use in found.outputs[0].uses()), found)


def _mixes(node: ir.Node, moving: Collection[ir.Value], tokens: Batch) -> bool:
    operands = [value for value in node.inputs if value is not None]
    taken = [value for value in operands if value in moving and tokens.axes(value)]
    if not taken:
        return False
    if runs_along(node, tokens):
        return True
    if node.op_type == _JOINS or not all(keeps_apart(value, tokens) for value in taken):
        return False
    used = [out for out in node.outputs if out.uses() or out.is_graph_output()]
    return not all(keeps_apart(out, tokens) for out in used)
