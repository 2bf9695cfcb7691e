"""Cancel the transposes and reshapes that stand between an attention and the projections around it.

Capture from 4-D attention leaves ``Reshape → Transpose → Transpose → Reshape`` on every operand.
Rules:

1. A chain of layout operators is a regrouping and a permutation of atoms (`axes`). Where that is
   none at all the chain goes away; where fewer operators do the same, they take its place.
2. Operators that others use too stay, and count as kept.

It must not fire where a size is unknown, as then nothing says that a reshape keeps atoms whole.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass

from crossfuse.export.matching.axes import LAYOUT_OPS, Axes, axes_of, follow, leaves
from crossfuse.export.matching.layout_builder import Arranger, UnknownSizeError

__all__ = ["cancel_layout_changes"]


def cancel_layout_changes(model: ir.Model) -> tuple[ir.Model, bool]:
    """Run the rules until nothing changes; returns the model and whether it changed."""
    modified = False
    while True:
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
        ends = [
            node
            for node in model.graph
            if node.op_type in LAYOUT_OPS and not node.domain and _is_end(node)
        ]
        if not sum(_shorten(model.graph, node) for node in ends):
            return model, modified
        modified = True


def _is_end(node: ir.Node) -> bool:
    """Something else than another layout operator uses the result."""
    out = node.outputs[0]
    return out.is_graph_output() or any(user.op_type not in LAYOUT_OPS for user, _ in out.uses())


def _shorten(graph: ir.Graph, end: ir.Node) -> bool:
    chain, source, axes, target = _chain(end)
    if not chain or target is None:
        return False
    arranger = Arranger()
    arranger.knows(source, axes)
    try:
        result = arranger.arrange(source, axes, target)
    except UnknownSizeError:
        return False
    old = end.outputs[0]
    emitted = [node for node in arranger.tape.nodes if node.op_type in LAYOUT_OPS]
    if len(emitted) >= _freed(chain) or (
        result is source and old.is_graph_output() and source.is_graph_input()
    ):
        return False
    for node in arranger.tape.nodes:
        node.metadata_props.update(end.metadata_props)
    graph.insert_before(end, arranger.tape.nodes)
    if result is not source:
        result.shape = old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    return True


def _chain(end: ir.Node) -> tuple[list[ir.Node], ir.Value, Axes, Axes | None]:
    """The longest chain that ends here and can be followed: its nodes, source, and axes at both
    ends."""
    nodes: list[ir.Node] = []
    node: ir.Node | None = end
    while node is not None and node.op_type in LAYOUT_OPS and node.inputs[0] is not None:
        nodes.insert(0, node)
        node = node.inputs[0].producer()
    while nodes:
        source = nodes[0].inputs[0]
        assert source is not None
        first = axes_of(source)
        axes = first
        for step in nodes:
            axes = follow(step, axes) if axes is not None else None
        if first is not None and axes is not None:
            return nodes, source, [leaves(a) for a in first], [leaves(a) for a in axes]
        nodes.pop(0)
    return [], end.outputs[0], [], None


def _freed(chain: list[ir.Node]) -> int:
    """How many operators of the chain go away once its end is replaced."""
    gone = {chain[-1]}
    for node in reversed(chain[:-1]):
        if node.outputs[0].is_graph_output() or any(
            user not in gone for user, _ in node.outputs[0].uses()
        ):
            break
        gone.add(node)
    return len(gone)
