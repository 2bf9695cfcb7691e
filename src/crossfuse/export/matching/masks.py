"""Masks, fills and biases of a written-out attention as one mask and one bias, and the rows in
which its scores count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.attention_match import Reading, Term
from crossfuse.export.matching.axes import Atom, Axes, leaves, size_of
from crossfuse.export.matching.layout_builder import Arranger

__all__ = ["Mask", "Roles", "Rows", "combined", "zeroed"]


@dataclass(frozen=True)
class Roles:
    """Batch atoms by what they are to the operator."""

    batch: list[Atom]
    heads: list[Atom]
    kv_heads: list[Atom]
    contexts: list[Atom]
    rows: list[Atom]
    keys: list[Atom]


def _joined(name: str, values: Iterable[ir.Value | None], arranger: Arranger) -> ir.Value | None:
    joined: ir.Value | None = None
    for value in values:
        if value is not None and joined is not None:
            joined = arranger.op(name, [joined, value], joined, _broadcast(joined, value))
        else:
            joined = joined if value is None else value
    return joined


def _broadcast(a: ir.Value, b: ir.Value) -> list[int | str]:
    assert a.shape is not None
    assert b.shape is not None
    return [y if x == 1 else x for x, y in zip(_plain(a.shape), _plain(b.shape), strict=True)]


def _plain(shape: ir.Shape) -> list[int | str]:
    return [size if isinstance(size, int) else str(size.value) for size in shape]


@dataclass(frozen=True)
class Rows:
    """What is said of rows: a value ``[1|batch, 1|heads, 1|rows, 1]``, and its axes."""

    value: ir.Value
    axes: Axes


def combined(
    terms: Sequence[Mask], like: ir.Value, arranger: Arranger
) -> tuple[ir.Value | None, ir.Value | None, Rows | None]:
    """The terms, in order, as one mask and one bias of the type of ``like``; and in which rows
    scores count, if not in all."""
    mask: ir.Value | None = None
    bias: ir.Value | None = None
    for item in terms:
        if item.term.fill is None:
            bias = _joined("Add", [bias, item.bias(like)], arranger)
        elif not item.term.finite:
            mask = _joined("And", [mask, item.attended()], arranger)
        else:
            if (
                mask is not None
            ):  # what an earlier mask removed is there again, with the fill as its score
                mask = _joined("Or", [mask, item.hidden()], arranger)
            bias = item.filled(bias, like, item.term.score)
    if not any(t.term.finite for t in terms):
        return mask, bias, None
    attended = _joined("And", [t.attended() for t in terms if t.term.fill is not None], arranger)
    assert attended is not None
    last = arranger.constant([3], np.int64)
    if not any(t.term.may_hide for t in terms):
        count = arranger.op("Cast", [attended], like, _shape(attended), to=like.dtype)
        peak = arranger.op("ReduceMax", [count, last], like, [*_shape(attended)[:3], 1], keepdims=1)
        return mask, bias, Rows(peak, _joint_axes([t for t in terms if t.term.fill is not None]))
    assert bias is not None
    nothing = arranger.constant(-np.inf, _numpy(like))
    filled = arranger.op("Not", [attended], attended, _shape(attended))
    if mask is not None:
        filled = _joined("And", [filled, mask], arranger) or filled
    peaks = []
    for where in (attended, filled):
        shape = _broadcast(where, bias)
        part = arranger.op("Where", [where, bias, nothing], like, shape)
        peaks.append(arranger.op("ReduceMax", [part, last], like, [*shape[:3], 1], keepdims=1))
    counts = arranger.op("Greater", peaks, attended, _shape(peaks[0]))
    return (
        mask,
        bias,
        Rows(
            arranger.op("Cast", [counts], like, _shape(counts), to=like.dtype), _joint_axes(terms)
        ),
    )


def zeroed(
    query: ir.Value, rows: Rows, roles: Roles, reading: Reading, arranger: Arranger
) -> ir.Value:
    """The queries ``[batch, rows, heads·size]``, 0 in rows where scores don't count."""
    target: Axes = [roles.batch, roles.rows, [*roles.heads, *reading.size]]
    present = [[a for a in axis if any(a in have for have in rows.axes)] for axis in target[:2]]
    width = [*roles.heads, *reading.size] if rows.axes[1] else []
    spread = arranger.arrange(rows.value, rows.axes, [present[0], present[1], width])
    return arranger.op(
        "Mul", [query, spread], query, None if query.shape is None else _plain(query.shape)
    )


def _shape(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return _plain(value.shape)


def _joint_axes(terms: Sequence[Mask]) -> Axes:
    """Of what the terms have in common, the keys reduced."""
    return [*(next((t.axes[i] for t in terms if t.axes[i]), []) for i in range(3)), []]


class Mask:
    """A term brought to the operator's four axes."""

    def __init__(self, term: Term, arranger: Arranger, roles: Roles) -> None:
        self.term, self.arranger = term, arranger
        held = {leaf for axis in term.operand.axes for leaf in leaves(axis)}

        def whole(atoms: list[Atom]) -> list[Atom]:
            return atoms if held & set(atoms) else []

        self.axes: Axes = [whole(roles.batch), whole(roles.heads), whole(roles.rows), roles.keys]
        self.shape = [size_of(axis).dim for axis in self.axes]
        self.value = arranger.arrange(term.operand.value, term.operand.axes, self.axes)

    def bias(self, like: ir.Value) -> ir.Value:
        """What a bias adds to the scores, of the type of ``like``."""
        value, op = self.value, self.arranger.op
        if value.dtype != like.dtype and like.dtype is not None:
            value = op("Cast", [value], like, self.shape, to=like.dtype)
        factor = self.arranger.constant(self.term.factor, _numpy(like))
        return value if self.term.factor == 1 else op("Mul", [value, factor], like, self.shape)

    def filled(self, bias: ir.Value | None, like: ir.Value, score: float) -> ir.Value:
        """The bias so far, replaced by a score where the term hides."""
        fill, zero = (self.arranger.constant(x, _numpy(like)) for x in (score, 0))
        before = zero if bias is None else bias
        order = [self.value, fill, before] if self.term.hidden else [self.value, before, fill]
        shape = self.shape if bias is None else _broadcast(self.value, bias)
        return self.arranger.op("Where", order, like, shape)

    def attended(self) -> ir.Value:
        """Bool, True where a mask lets a key be attended."""
        return self._negated() if self.term.hidden else self.value

    def hidden(self) -> ir.Value:
        """Bool, True where a mask hides."""
        return self.value if self.term.hidden else self._negated()

    def _negated(self) -> ir.Value:
        return self.arranger.op("Not", [self.value], self.value, self.shape)


def _numpy(value: ir.Value) -> np.dtype[np.generic]:
    assert value.dtype is not None
    return value.dtype.numpy()
