"""Sinks: columns that are joined to the scores before the softmax, and have no key.

A sink takes a share of each row's weight: a learned logit per head, or the 0 of a softmax with one
more in its denominator. Behind the softmax its column is cut off, or has a value of its own. To the
operator it is one more key of zeros, whose score is a bias, and whose value is 0 where its column
is cut off.

While a chain is read, `joined` and `padded` make a `Sink` of the node that joins it, and `cut`
follows the scores' axes through the node that takes it off. `sink_rows` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import (
    Axes,
    Axis,
    AxisFactor,
    FactoredValue,
    Size,
    all_factors,
    axes_of,
    factors,
    last_factors,
    regrouped,
    size_of,
)
from crossfuse.export.matching.softmax_chain import ChainNode, Mismatch, scalar_of
from crossfuse.export.matching.terms import Term
from crossfuse.graph.shapes import dims_of

__all__ = ["Joined", "Sink", "cut", "joined", "padded", "require_no_gate"]


@dataclass(frozen=True)
class Sink:
    """Columns beside the scores.

    Attributes:
        logits: their scores, with the scores' factors; those of the keys' axis are their own. A
            number is the score of all of them.
        columns: the factors of their own axis; none for one column.
        keys: the keys' factors.
        both: the factors of keys and sinks together.
        first: whether they stand before the keys.
        before: how many terms act on the keys alone; those after act on both.
        factor: what the logits were multiplied by afterwards.
    """

    logits: FactoredValue | float
    columns: Axis
    keys: Axis
    both: Axis
    first: bool
    before: int
    factor: float = 1.0

    @property
    def count(self) -> int:
        """How many columns."""
        return size_of(self.columns).factor

    @property
    def lowest(self) -> float | None:
        """The lowest of their scores; None where these are computed."""
        if isinstance(self.logits, float):
            return self.logits * self.factor
        tensor = ir.convenience.get_const_tensor(self.logits.value)
        if tensor is None or tensor.size == 0:
            return None
        return float((np.asarray(tensor.numpy(), dtype=np.float64) * self.factor).min())

    @property
    def terms(self) -> tuple[Term, ...]:
        """The logits as a bias on the sinks' own columns; none where they are a number."""
        return () if isinstance(self.logits, float) else (Term(self.logits, self.factor),)

    def scaled(self, factor: float) -> Sink:
        """With logits that a number multiplies."""
        return replace(self, factor=self.factor * factor)


class Joined(NamedTuple):
    """A sink, and the scores' axes behind the node that joins it."""

    sink: Sink
    axes: Axes


def joined(link: ChainNode, axes: Axes, terms: int) -> Joined:
    """The sink that a ``Concat`` joins to scores of these axes, on which ``terms`` acted so far.

    Raises:
        Mismatch: more than one value is joined, or how many columns it has is unknown.
    """
    node = link.node
    if len(node.inputs) != 2:
        raise Mismatch("its scores are joined with several others")
    logits = node.inputs[1 - link.operand]
    assert logits is not None
    axis = node.attributes["axis"].as_int() % len(axes)
    shape = logits.shape
    count = shape[axis] if shape is not None and len(shape) == len(axes) else None
    if not isinstance(count, int):
        raise Mismatch("its scores are joined with others, not with a known number of sinks")
    return _join(logits, node, axes, axis, (count, link.operand == 1, terms))


def padded(link: ChainNode, axes: Axes, terms: int) -> Joined:
    """The sink that a ``Pad`` of one axis, on one side, joins: one number as the score of all."""
    node = link.node
    given_pads, fill, given_on = (*node.inputs[1:], None, None, None)[:3]
    pads, on = _numbers(given_pads), _numbers(given_on)
    number = 0.0 if fill is None else scalar_of(fill)
    mode = node.attributes.get_string("mode", "constant")
    if pads is None or number is None or mode != "constant":
        raise Mismatch("its scores are padded by what is no number")
    places = range(len(axes)) if on is None else on
    ends = zip(places, pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True)
    given = [each for each in ends if any(each[1:])]
    if len(given) != 1 or min(given[0][1:]) != 0:
        raise Mismatch("its scores are padded on more than one side")
    ((axis, before, after),) = given
    how = (before + after, before > 0, terms)
    return _join(number, node, axes, axis % len(axes), how)


def _join(
    logits: ir.Value | float, node: ir.Node, axes: Axes, axis: int, how: tuple[int, bool, int]
) -> Joined:
    count, first, terms = how
    columns: Axis = (AxisFactor(Size(count)),) if count > 1 else ()
    found = axes_of(node.outputs[0])
    if found is None:
        raise Mismatch("the size of its scores beside their sinks is unknown")
    both = found[axis]
    operand: FactoredValue | float
    if isinstance(logits, ir.Value):
        operand = _unrepeated(logits, [*axes[:axis], columns, *axes[axis + 1 :]], columns)
    else:
        operand = logits
    sink = Sink(operand, columns, axes[axis], both, first, terms)
    return Joined(sink, [*axes[:axis], both, *axes[axis + 1 :]])


def _unrepeated(value: ir.Value, axes: Axes, columns: Axis) -> FactoredValue:
    """What was repeated to the scores' shape, with their factors: a bias needs no copies. The
    sinks' own axis stays."""
    found: FactoredValue | None = FactoredValue(value, axes)
    while found is not None:
        value, axes = found.value, found.axes
        found = _before_repetition(found, columns)
    own = axes_of(value)
    assert own is not None
    return FactoredValue(value, [it if ours else () for ours, it in zip(own, axes, strict=True)])


def _before_repetition(found: FactoredValue, columns: Axis) -> FactoredValue | None:
    """The value before one operator that repeats it or regroups its axes."""
    value = found.value
    node = value.producer()
    source = node.inputs[0] if node is not None and node.inputs else None
    before, after = dims_of(source), dims_of(value)
    if node is None or source is None or before is None or after is None:
        return None
    if node.op_type == "Reshape":
        axes = regrouped(found.axes, source)
        return None if axes is None else FactoredValue(source, axes)
    if node.op_type not in ("Expand", "Tile") or len(before) != len(after):
        return None
    of_columns = set(factors(columns))
    parts: list[Axis] = []
    for axis, old, new in zip(found.axes, before, after, strict=True):
        part: Axis | None = axis if old == new else None
        if old != new and isinstance(old, int) and not of_columns & set(factors(axis)):
            part = last_factors(axis, old)
        if part is None:
            return None
        parts.append(part)
    return FactoredValue(source, parts)


def cut(node: ir.Node, axes: Axes, sink: Sink | None) -> Axes:
    """Axes of probabilities behind a ``Slice`` that takes the sinks off.

    Raises:
        Mismatch: it takes off something else, or where it cuts is unknown.
    """
    starts, ends, on, steps = (
        _numbers(node.inputs[i] if i < len(node.inputs) else None) for i in range(1, 5)
    )
    if sink is None or starts is None or len(starts) != 1 or steps not in (None, [1]):
        raise Mismatch("a part of its attention probabilities is cut off")
    axis = (0 if on is None else on[0]) % len(axes)
    if factors(axes[axis]) != factors(sink.both):
        raise Mismatch("a part of its attention probabilities is cut off")
    if not _keeps_the_keys(node, starts[0], ends, axis, sink):
        raise Mismatch("other columns of its attention probabilities are cut off than its sinks")
    return [*axes[:axis], sink.keys, *axes[axis + 1 :]]


def _keeps_the_keys(
    node: ir.Node, start: int, ends: list[int] | None, axis: int, sink: Sink
) -> bool:
    keys, found = size_of(sink.keys), axes_of(node.outputs[0])
    as_many = found is not None and size_of(found[axis]) == keys
    total = size_of(sink.both).static
    if sink.first:
        begins = start == sink.count or (total is not None and start == sink.count - total)
        return begins and (as_many or (ends is not None and ends[0] >= np.iinfo(np.int32).max))
    return start == 0 and (as_many or ends == [-sink.count])


def require_no_gate(sink: Sink, gates: Iterable[FactoredValue]) -> None:
    """Refuse what multiplies or hides probabilities key by key, where sinks have some of them.

    Raises:
        Mismatch: one of these operands has an axis of keys or of sinks.
    """
    along_keys = {*factors(sink.keys), *factors(sink.both)}
    if any(along_keys & set(all_factors(gate.axes)) for gate in gates):
        raise Mismatch("its attention probabilities are masked or multiplied beside sinks")


def _numbers(value: ir.Value | None) -> list[int] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]
