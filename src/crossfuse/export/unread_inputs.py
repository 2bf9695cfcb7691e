"""Inputs of features that no result depends on: an image whose placeholders the ids don't hold.

What the examples hold decides that where a model asks whether there are placeholders at all. The
numbers are those of eager PyTorch all the same, so nothing else would tell.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.graph.op_classes import SIZE_OPS

__all__ = ["unread_inputs"]


def unread_inputs(graph: ir.Graph) -> tuple[str, ...]:
    """Names of inputs that hold floats which no output is computed from; sizes are no floats."""
    read, pending = set[ir.Value](), list(graph.outputs)
    while pending:
        value = pending.pop()
        if value in read:
            continue
        read.add(value)
        node = value.producer()
        if node is not None and node.op_type not in SIZE_OPS:
            inner = (v for body in _bodies(node) for v in (*body.outputs, *_captured(body)))
            pending += [v for v in (*node.inputs, *inner) if v is not None]
    return tuple(
        value.name or ""
        for value in graph.inputs
        if value not in read and value.dtype is not None and value.dtype.is_floating_point()
    )


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """The bodies of a loop or a branch."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def _captured(body: ir.Graph) -> list[ir.Value]:
    """What a body's nodes read, from wherever it is."""
    return [v for node in body.all_nodes() for v in node.inputs if v is not None]
