"""Numbers that multiply queries or keys join in the attention's scale.

Rules:

1. ``Mul`` or ``Div`` by a constant of one element between a projection and an attention's queries
   or keys, with nothing but layout operators in between, is removed, and the scale takes its
   factor.

It must not fire where the scaled tensor has another use.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.matching.axes import LAYOUT_OPS
from crossfuse.export.matching.softmax_chain import scalar_of
from crossfuse.graph.metadata import attention_nodes

__all__ = ["absorb_scales"]


def absorb_scales(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite in place; returns the model and whether it changed."""
    modified = False
    for node in list(attention_nodes(model.graph)):
        for operand in (0, 1):
            while (factor := _take_factor(node, operand)) is not None:
                scale = node.attributes["scale"].as_float() * factor
                node.attributes["scale"] = ir.AttrFloat32("scale", scale)
                modified = True
    return model, modified


def _take_factor(attention: ir.Node, operand: int) -> float | None:
    """Remove the nearest constant factor of an operand and return it, if there is one."""
    value = attention.inputs[operand]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None:
            return None
        if node.op_type in ("Mul", "Div") and not node.domain:
            return _bypass(node, value)
        if node.op_type not in LAYOUT_OPS:
            return None
        value = node.inputs[0]
    return None


def _bypass(node: ir.Node, value: ir.Value) -> float | None:
    left, right = node.inputs
    number = scalar_of(right)
    kept = left
    if number is None and node.op_type == "Mul":
        number, kept = scalar_of(left), right
    if (
        number is None
        or kept is None
        or number == 0
        or list(kept.shape or ()) != list(value.shape or ())
    ):
        return None
    value.replace_all_uses_with(kept)
    return number if node.op_type == "Mul" else 1 / number
