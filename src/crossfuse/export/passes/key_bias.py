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

from crossfuse.graph.metadata import attention_nodes
from crossfuse.ops.contract import DOMAIN, NAME

__all__ = ["drop_key_bias"]

_KEY = 1


def drop_key_bias(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite in place; returns the model and whether it changed."""
    modified = False
    for node in list(attention_nodes(model.graph)):
        key = node.inputs[_KEY]
        add = None if key is None else key.producer()
        parts = None if key is None or add is None else _parts(add, key)
        if key is None or add is None or parts is None:
            continue
        rest, bias = parts
        key.replace_all_uses_with(rest)
        model.graph.remove(add, safe=True)
        if bias.is_initializer() and not bias.uses():
            del model.graph.initializers[str(bias.name)]
        modified = True
    return model, modified


def _parts(add: ir.Node, key: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The keys without their bias, and the bias."""
    if add.op_type != "Add" or add.domain or key.is_graph_output():
        return None
    if any(
        (user.domain, user.op_type, place) != (DOMAIN, NAME, _KEY) for user, place in key.uses()
    ):
        return None
    for bias, rest in (tuple(add.inputs), tuple(reversed(add.inputs))):
        if bias is None or rest is None or not _same_for_all_keys(bias):
            continue
        if list(rest.shape or ()) == list(key.shape or ()):
            return rest, bias
    return None


def _same_for_all_keys(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and len(tensor.shape) <= 3
        and all(size == 1 for size in tensor.shape.numpy()[:-1])
    )
