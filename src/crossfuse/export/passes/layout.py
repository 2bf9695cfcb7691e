"""Cancel the transposes and reshapes that stand between an attention and the projections around it.

Capture from 4-D attention leaves ``Reshape → Transpose → Transpose → Reshape`` on every operand. Rules:

1. ``Transpose`` after ``Transpose`` composes to one, or to none where the two are inverse.
2. A chain of ``Reshape`` that ends in the dimensions it began with, by name or number, goes away.

It must not fire on a ``Reshape`` between two ``Transpose`` (it may mix axes), nor where a dimension is unknown. The rules for
``Transpose`` are onnxscript's; the pass runs to a fixed point.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import no_op_transpose_rule, transpose_transpose_rule

from crossfuse.graphs import dim_of, same_dim

__all__ = ["cancel_layout_changes"]


def cancel_layout_changes(model: ir.Model) -> tuple[ir.Model, bool]:
    """Run the rules until nothing changes; returns the model and whether it changed."""
    before = len(model.graph)
    rules = [transpose_transpose_rule, no_op_transpose_rule]
    while True:
        count = len(model.graph)
        model = rewrite(model, pattern_rewrite_rules=rules)
        _drop_idle_reshapes(model)
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
        if len(model.graph) == count:
            return model, count != before


def _drop_idle_reshapes(model: ir.Model) -> None:
    for node in model.graph:
        result = node.outputs[0]
        if node.op_type != "Reshape" or node.domain:
            continue
        source = node.inputs[0]
        while source is not None and not _same_shape(source, result):
            producer = source.producer()
            source = producer.inputs[0] if producer is not None and producer.op_type == "Reshape" else None
        if source is None:
            continue
        if not result.is_graph_output():
            result.replace_all_uses_with(source)
        elif source.producer() is not None and not source.is_graph_output():
            name, result.name = result.name, f"{result.name}_reshaped"
            ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
            source.name = name


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(same_dim(dim_of(a, i), dim_of(b, i)) for i in range(len(a.shape)))
