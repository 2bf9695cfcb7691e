"""Lower a file's graph to an opset that the passes know.

Rules:

1. Graphs are said to be of an older opset where their operators exist there and mean the same:
   opsets 24 to 26 mostly add types.
2. ``Swish`` is written out.
3. ``Attention`` loses its lengths of unpadded keys, and its windows, to a mask.

It must not lower a graph with an operator that the older opset lacks: its name is the reason. Nor
can it an ``Attention`` with a cache besides windows or lengths.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from crossfuse.errors import InputError
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.export.passes.raise_opset import opset_of
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import rank_of

__all__ = ["NEWEST_OPSET", "LowerOpsetPass"]

NEWEST_OPSET = 26
"""The newest opset that ONNX Runtime executes."""

_NEW_ATTRIBUTES = ("left_window_size", "right_window_size", "is_causal")


class LowerOpsetPass(FusionPass):
    """The graph at an older opset.

    Args:
        opset: that it is lowered to.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def call(self, model: ir.Model) -> FusionResult:
        """Lower in place, where the opset is newer.

        Raises:
            InputError: an operator that the older opset lacks.
        """
        given = opset_of(model)
        if given <= self.opset:
            return FusionResult(model, False)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in list(graph):
                if is_onnx(node):
                    _lower(node)
        own = {n.op_type for n in model.graph.all_nodes() if is_onnx(n)}
        lacking = sorted(name for name in own if not onnx.defs.has(name, self.opset, ""))
        if lacking:
            raise InputError(
                f"the graph has operators of opset {given} that can't be taken in",
                got=", ".join(lacking),
                do=f"Export it again at opset {self.opset}",
            )
        model.graph.opset_imports.pop("ai.onnx", None)
        model.graph.opset_imports[""] = self.opset
        return FusionResult(model, True)


def _lower(node: ir.Node) -> None:
    """Write out what opsets from 24 on add."""
    build = GraphBuilder()
    if node.op_type == "Swish":
        build.replace(node, _swish(build, node))
    elif node.op_type == "Attention" and (_input(node, 6) is not None or _windows(node)):
        build.replace(node, _masked_attention(build, node))


def _swish(build: GraphBuilder, node: ir.Node) -> ir.Value:
    (x,) = node.inputs
    assert x is not None
    alpha = node.attributes.get_float("alpha", 1.0)
    inner = x
    if alpha != 1.0:
        inner = build.op("Mul", x, build.op("CastLike", build.constant(alpha, np.float32), x))
    return build.op("Mul", x, build.op("Sigmoid", inner))


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _windows(node: ir.Node) -> dict[str, int]:
    """How far keys may lie to the left and to the right of a query, where that is limited."""
    sizes = {side: node.attributes.get_int(f"{side}_window_size", -1) for side in ("left", "right")}
    return {side: size for side, size in sizes.items() if size is not None and size >= 0}


def _masked_attention(build: GraphBuilder, node: ir.Node) -> ir.Value:
    """Lengths of keys, windows, and a causal limit that is aligned with the lengths, as a mask."""
    query, key, value, mask = node.inputs[0], node.inputs[1], node.inputs[2], _input(node, 3)
    if _input(node, 4) is not None:
        raise InputError(
            "the graph has an Attention node with a cache and windows, which can't be taken in",
            where=node.name,
        )
    assert query is not None
    assert key is not None
    attended = _attended(build, node, query, key)
    if mask is None:
        joined = attended
    elif mask.dtype == ir.DataType.BOOL:
        joined = build.op("And", mask, attended)
    else:
        lowest = build.op("CastLike", build.constant(-np.inf, np.float32), mask)
        joined = build.op("Where", attended, mask, lowest)
    output = build.op("Attention", query, key, value, joined)
    made = output.producer()
    assert made is not None
    made.name = node.name
    for name, attribute in node.attributes.items():
        if name not in _NEW_ATTRIBUTES:
            made.attributes[name] = attribute
    if _causal(node) and _input(node, 6) is None:
        made.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    return output


def _causal(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("is_causal", 0))


def _attended(build: GraphBuilder, node: ir.Node, query: ir.Value, key: ir.Value) -> ir.Value:
    """Which keys a query may attend to by lengths and windows, and by causality where there are
    lengths."""
    windows, lengths = _windows(node), _input(node, 6)
    rows = build.op("Unsqueeze", build.positions(_length(build, query)), build.ints(1))
    keys = build.positions(_length(build, key))
    tests = []
    if lengths is not None:
        lengths = build.op("Unsqueeze", lengths, build.ints(1, 2, 3))
        tests.append(build.op("Less", keys, lengths))
        shift = build.op("Sub", lengths, build.op("Squeeze", _length(build, query)))
        rows = build.op("Add", rows, shift)
        if _causal(node):
            tests.append(build.op("LessOrEqual", keys, rows))
    if "left" in windows:
        first = build.op("Sub", rows, build.constant(windows["left"], np.int64))
        tests.append(build.op("GreaterOrEqual", keys, first))
    if "right" in windows:
        last = build.op("Add", rows, build.constant(windows["right"], np.int64))
        tests.append(build.op("LessOrEqual", keys, last))
    joined = tests[0]
    for test in tests[1:]:
        joined = build.op("And", joined, test)
    return joined


def _length(build: GraphBuilder, value: ir.Value) -> ir.Value:
    """Of queries or keys, ``[1]``."""
    return build.size(value, 1 if rank_of(value) == 3 else 2)
