"""Cancel the transposes and reshapes that stand between an attention and the projections around it.

Capture from 4-D attention factors ``Reshape → Transpose → Transpose → Reshape`` on every operand.
Rules:

1. A chain of layout operators is a regrouping and a permutation of factors (`axes`). Where that is
   none at all the chain goes away; where fewer operators do the same, they take its place.
2. Operators that others use too stay, and count as kept.

It must not fire where a size is unknown, as then nothing says that a reshape keeps factors whole.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass

from crossfuse.export.matching.axes import Axes, axes_of, factors, follow_layout
from crossfuse.export.matching.layout_builder import LayoutBuilder, UnknownSizeError
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.op_classes import LAYOUT_OPS, is_onnx

__all__ = ["CancelLayoutPass"]


class CancelLayoutPass(FusionPass):
    """Chains of layout operators → as few as do the same."""

    def call(self, model: ir.Model) -> FusionResult:
        """Shorten chains until none is left that can be."""
        modified = False
        while True:
            modified |= IdentityEliminationPass()(model).modified
            modified |= RemoveUnusedNodesPass()(model).modified
            ends = [node for node in model.graph if is_onnx(node, *LAYOUT_OPS) and _is_end(node)]
            if not sum(_shorten(node) for node in ends):
                return FusionResult(model, modified)
            modified = True


class _Chain(NamedTuple):
    """Layout operators, and the axes of what goes in and comes out."""

    nodes: list[ir.Node]
    source: ir.Value
    before: Axes
    after: Axes


def _is_end(node: ir.Node) -> bool:
    """Something else than another layout operator uses the result."""
    out = node.outputs[0]
    return out.is_graph_output() or any(user.op_type not in LAYOUT_OPS for user, _ in out.uses())


def _shorten(end: ir.Node) -> bool:
    chain = _chain(end)
    if chain is None:
        return False
    layout = LayoutBuilder()
    layout.knows(chain.source, chain.before)
    try:
        result = layout.arrange(chain.source, chain.before, chain.after)
    except UnknownSizeError:
        return False
    emitted = [node for node in layout.build.nodes if node.op_type in LAYOUT_OPS]
    as_is = result is chain.source and result.producer() is None
    if len(emitted) >= _freed(chain.nodes) or (as_is and end.outputs[0].is_graph_output()):
        return False
    layout.build.replace(end, result)
    return True


def _chain(end: ir.Node) -> _Chain | None:
    """The longest chain that ends here and can be followed."""
    nodes: list[ir.Node] = []
    node: ir.Node | None = end
    while node is not None and is_onnx(node, *LAYOUT_OPS) and node.inputs[0] is not None:
        nodes.insert(0, node)
        node = node.inputs[0].producer()
    while nodes:
        source = nodes[0].inputs[0]
        assert source is not None
        first = axes_of(source)
        axes = first
        for step in nodes:
            axes = follow_layout(step, axes) if axes is not None else None
        if first is not None and axes is not None:
            return _Chain(nodes, source, [factors(a) for a in first], [factors(a) for a in axes])
        nodes.pop(0)
    return None


def _freed(chain: list[ir.Node]) -> int:
    """How many operators of the chain go away once its end is replaced."""
    removed = {chain[-1]}
    for node in reversed(chain[:-1]):
        if node.outputs[0].is_graph_output() or any(
            user not in removed for user, _ in node.outputs[0].uses()
        ):
            break
        removed.add(node)
    return len(removed)
