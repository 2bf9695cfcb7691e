"""Multiplying an operand of an attention, or its result, by a tensor with some of its axes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from crossfuse.export.matching.axes import Axes, Axis, FactoredValue, all_factors, factors, size_of
from crossfuse.export.matching.gates import Gate, GateKind
from crossfuse.export.matching.layout_builder import LayoutBuilder
from crossfuse.export.matching.terms import Multiplier

__all__ = ["gated", "multiplied"]


def multiplied(
    value: FactoredValue, multipliers: Iterable[Multiplier], batch: Axis, layout: LayoutBuilder
) -> FactoredValue:
    """A value with tensors that multiply or divide it; factors of the batch that only they have
    come first.

    Args:
        value: the queries, say.
        multipliers: with factors of the value and of the batch alone.
        batch: factors that the value may lack.
        layout: emits the nodes.
    """
    for multiplier in multipliers:
        kind = GateKind.DIVIDE if multiplier.divides else GateKind.MULTIPLY
        value = _combined(value, Gate(multiplier.operand, kind), batch, layout)
    return value


def gated(
    value: FactoredValue, gates: Iterable[Gate], batch: Axis, layout: LayoutBuilder
) -> FactoredValue:
    """A value behind gates, as `multiplied` behind multipliers."""
    for gate in gates:
        value = _combined(value, gate, batch, layout)
    return value


def _combined(
    value: FactoredValue, gate: Gate, batch: Axis, layout: LayoutBuilder
) -> FactoredValue:
    operand = gate.operand
    flat, its_own = all_factors(value.axes), all_factors(operand.axes)
    extra = [f for f in factors(batch) if f in its_own and f not in flat]
    target: Axes = [[factor] for factor in (*extra, *flat)]
    one = layout.arrange(value.value, value.axes, target)
    other = layout.arrange(operand.value, operand.axes, target, expand=False)
    made = _operator(gate.kind, one, other, [size_of(axis).dim for axis in target], layout)
    return FactoredValue(made, target)


def _operator(
    kind: GateKind, value: ir.Value, operand: ir.Value, dims: list[int | str], layout: LayoutBuilder
) -> ir.Value:
    if kind in (GateKind.MULTIPLY, GateKind.DIVIDE):
        return layout.op(kind.value, [value, operand], value, dims)
    assert value.dtype is not None
    zero = layout.constant(0, value.dtype.numpy())
    order = [operand, value, zero] if kind is GateKind.KEEP else [operand, zero, value]
    return layout.op("Where", order, value, dims)
