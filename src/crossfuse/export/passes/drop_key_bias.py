"""Biases of keys go: softmax doesn't see them.

A bias ``b`` that all keys share adds ``q·b`` to every score of a query, and softmax is the same for
scores that differ by a constant.

Rules:

1. An ``Add`` of a constant that is the same for all keys (all axes but the last are 1) in front of
   an attention's keys is removed, and the constant with it.

It must not fire where the sum has another use than as keys, is an output of the graph, or differs
in shape from what the constant is added to.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.passes.base import FusionPass, FusionResult, Missed
from crossfuse.graph.attention_node import attentions, role_at
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dims_of

__all__ = ["DropKeyBiasPass"]


class DropKeyBiasPass(FusionPass):
    """Keys without their bias."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        modified = False
        missed: list[Missed] = []
        for attention in attentions(model.graph):
            key = attention.key
            add = key.producer()
            without = None if add is None else _without_bias(add)
            if without is None:
                continue
            if not _only_keys(key):
                reason = "the sum of its keys and their bias has another use"
                missed.append(Missed(attention.module, reason))
                continue
            key.replace_all_uses_with(without)
            modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
        return FusionResult(model, modified, tuple(missed))


def _only_keys(value: ir.Value) -> bool:
    uses = value.uses()
    return not value.is_graph_output() and all(role_at(*use) == "key" for use in uses)


def _without_bias(add: ir.Node) -> ir.Value | None:
    """The keys without their bias, where a node adds one."""
    if not is_onnx(add, "Add"):
        return None
    for bias, rest in (tuple(add.inputs), tuple(reversed(add.inputs))):
        if bias is not None and rest is not None and _same_for_all_keys(bias):
            dims = dims_of(rest)
            if dims is not None and dims[-1] is not None and dims == dims_of(add.outputs[0]):
                return rest
    return None


def _same_for_all_keys(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or len(tensor.shape) > 3:
        return False
    return all(size == 1 for size in tensor.shape.numpy()[:-1])
