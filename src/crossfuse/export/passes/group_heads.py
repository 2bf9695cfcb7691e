"""Keys and values whose heads were repeated for the queries become grouped heads again.

Rules:

1. Where keys and values of an attention both come from an ``Expand`` that repeats each head the
   same number of times, with nothing but layout operators around it, the attention takes them as
   they were before, with fewer ``kv_num_heads``.

It must not fire where only one of them is repeated, nor where whole groups of heads are repeated in
turn (``1 2 1 2``).
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from crossfuse.export.matching.axes import (
    Axes,
    Axis,
    AxisFactor,
    axes_of,
    factors,
    follow_layout,
    size_of,
)
from crossfuse.export.matching.layout_builder import LayoutBuilder, UnknownSizeError
from crossfuse.export.passes.base import FusionPass, FusionResult, Missed
from crossfuse.graph.attention_node import AttentionNode, attentions
from crossfuse.graph.op_classes import LAYOUT_OPS, is_onnx

__all__ = ["GroupHeadsPass"]


class GroupHeadsPass(FusionPass):
    """Repeated key heads → grouped heads."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        modified = False
        missed: list[Missed] = []
        for attention in attentions(model.graph):
            reason = _group(attention)
            modified |= reason is None
            if reason:
                missed.append(Missed(attention.module, reason))
        return FusionResult(model, modified, tuple(missed))


class _Repeated(NamedTuple):
    """Keys or values as they were before each head was repeated so many times."""

    source: ir.Value
    axes: Axes
    ungrouped: Axes
    times: int


def _group(attention: AttentionNode) -> str | None:
    """Group the heads; gives None where it was done, and else why not: nothing to say where nothing
    is repeated."""
    heads = attention.kv_num_heads
    key, value = (_before_repeat(v, heads) for v in (attention.key, attention.value))
    if key is None and value is None:
        return ""
    if key is None or value is None:
        return "the heads of its keys or of its values alone are repeated"
    if key.times != value.times:
        return "the heads of its keys and of its values are repeated a different number of times"
    layout = LayoutBuilder()
    try:
        operands = [_arranged(found, layout) for found in (key, value)]
    except UnknownSizeError as size:
        return f"the size {size} of its repeated heads is not known"
    layout.build.insert_before(attention.node)
    for role, operand in zip(("key", "value"), operands, strict=True):
        attention.set_operand(role, operand)
    attention.set_kv_num_heads(heads // key.times)
    return None


def _arranged(found: _Repeated, layout: LayoutBuilder) -> ir.Value:
    layout.knows(found.source, found.axes)
    return layout.arrange(found.source, found.axes, found.ungrouped)


def _before_repeat(value: ir.Value, heads: int) -> _Repeated | None:
    """What ``[B, S, Hkv·D]`` was repeated from; None where each head was not repeated alike."""
    steps: list[ir.Node] = []
    node = value.producer()
    while node is not None and is_onnx(node, *LAYOUT_OPS) and node.inputs[0] is not None:
        steps.insert(0, node)
        node = node.inputs[0].producer()
    if node is None or not is_onnx(node, "Expand") or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    axes, wide = axes_of(source), axes_of(node.outputs[0])
    if axes is None or wide is None or len(wide) != len(axes):
        return None
    repeats: list[AxisFactor] = []
    state: Axes | None = []
    for own, out in zip(axes, wide, strict=True):
        repeats += out if not own else []
        state = [*(state or []), own or out]
    for step in steps:
        state = follow_layout(step, state) if state is not None else None
    if state is None or len(state) != 3 or len(factors(repeats)) != 1:
        return None
    (repeat,) = factors(repeats)
    times = _times(repeat, factors(state[2]), heads)
    if times is None:
        return None
    ungrouped = [[factor for factor in factors(axis) if factor is not repeat] for axis in state]
    return _Repeated(source, axes, ungrouped, times)


def _times(repeat: AxisFactor, width: Axis, heads: int) -> int | None:
    """How often each head is repeated, where all heads stand before the repetition in the width."""
    times = repeat.size.static
    if times is None or repeat not in width:
        return None
    before = size_of(width[: width.index(repeat)]).static
    return times if before is not None and before * times == heads else None
