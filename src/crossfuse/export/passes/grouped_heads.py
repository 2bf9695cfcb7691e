"""Keys and values whose heads were repeated for the queries become grouped heads again.

Rules:

1. Where keys and values of an attention both come from an ``Expand`` that repeats each head the
   same number of times, with nothing but layout operators around it, the attention takes them as
   they were before, with fewer ``kv_num_heads``.

It must not fire where only one of them is repeated, nor where whole groups of heads are repeated in
turn (``1 2 1 2``).
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.matching.axes import LAYOUT_OPS, Atom, Axes, axes_of, follow, leaves, size_of
from crossfuse.export.matching.layout_builder import Arranger, UnknownSizeError
from crossfuse.graph.metadata import attention_nodes

__all__ = ["group_heads"]


def group_heads(model: ir.Model) -> tuple[ir.Model, bool]:
    """Rewrite in place; returns the model and whether it changed."""
    modified = False
    for node in list(attention_nodes(model.graph)):
        heads = node.attributes["kv_num_heads"].as_int()
        arranger = Arranger()
        try:
            found = [_before_repeat(value, heads, arranger) for value in node.inputs[1:3]]
        except UnknownSizeError:
            continue
        if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
            continue
        for new in arranger.tape.nodes:
            new.metadata_props.update(
                {k: v for k, v in node.metadata_props.items() if k.startswith("pkg.")}
            )
        model.graph.insert_before(node, arranger.tape.nodes)
        for operand, (value, _) in zip((1, 2), (f for f in found if f is not None), strict=True):
            node.replace_input_with(operand, value)
        node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", heads // found[0][1])
        modified = True
    return model, modified


def _before_repeat(
    value: ir.Value | None, heads: int, arranger: Arranger
) -> tuple[ir.Value, int] | None:
    """The operand ``[B, S, Hkv·D]`` without repetition, and how often each head was repeated."""
    steps: list[ir.Node] = []
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in LAYOUT_OPS and node.inputs[0] is not None:
        steps.insert(0, node)
        node = node.inputs[0].producer()
    source = node.inputs[0] if node is not None and node.op_type == "Expand" else None
    axes = axes_of(source) if source is not None else None
    if node is None or source is None or axes is None or node.outputs[0].shape is None:
        return None
    wide = axes_of(node.outputs[0])
    if wide is None or len(wide) != len(axes):
        return None
    repeats: list[Atom] = []
    state: Axes | None = []
    for own, out in zip(axes, wide, strict=True):
        if out and not own:
            repeats += out
        state = [*(state or []), own or out]
    for step in steps:
        state = follow(step, state) if state is not None else None
    if state is None or len(repeats) != 1 or len(state) != 3:
        return None
    (repeat,) = leaves(repeats)[:1]
    width, times = leaves(state[2]), repeat.size.static
    if times is None or repeat not in width:
        return None
    before = size_of(width[: width.index(repeat)]).static
    if before is None or before * times != heads:
        return None
    arranger.knows(source, axes)
    kept = [[leaf for leaf in leaves(axis) if leaf is not repeat] for axis in state]
    return arranger.arrange(source, axes, kept), times
