"""What a chain computes, read as an attention: operands with their axes, scale, masks and
biases."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import LAYOUT_OPS, Atom, Axes, axes_of, follow, leaves, size_of
from crossfuse.export.matching.softmax_chain import WIDE, Chain, Mismatch, Step, scalar_of

__all__ = ["Operand", "Reading", "Term", "read_chain"]

_HIDES = 1e3
"""A score this far below others weighs nothing."""

_ABSORBS = 1e30
"""Beside a number this large a score is nothing, in any float type that holds it."""

_BOUNDED = frozenset({"MatMul", "Gemm", "Softmax", "LayerNormalization", "Tanh", "Sigmoid", "Shape", "Size", "Less", "Equal",
                      "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not", "FusedAttention"})  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """A value, and the atoms of its axes."""

    value: ir.Value
    axes: Axes


@dataclass
class Term:
    """A bias on the scores: ``factor · operand``; where ``fill`` is given, a mask: ``fill`` where
    the operand is ``hidden``.

    Attributes:
        operand, factor, hidden: as above.
        fill: what replaces the scores, before the factor.
        may_hide: a bias that may be as low as what hides keys, as one that comes from outside may.
    """

    operand: Operand
    factor: float = 1.0
    fill: float | None = None
    hidden: bool = True
    may_hide: bool = False

    @property
    def finite(self) -> bool:
        """A fill that leaves a row without keys something to average."""
        return self.fill is not None and np.isfinite(self.fill)

    @property
    def score(self) -> float:
        """A fill's final score."""
        assert self.fill is not None
        return self.fill * self.factor


@dataclass
class Reading:
    """An attention: ``softmax(scale · ∏ multipliers · query keyᵀ + terms) value``.

    Attributes:
        query, key, value: operands of the two products, with axes such as ``[batch…, rows, size]``
            in any order.
        batch, rows, keys, size, value_size: the atoms of each role.
        multipliers: tensors that multiply the scores, constant along the keys; with True where they
            divide.
        terms: biases and masks, in order: a mask replaces what was before it.
        output: axes of the second product's result.
        states: values between the products, with their axes.
    """

    query: Operand
    key: Operand
    batch: list[Atom]
    rows: list[Atom]
    keys: list[Atom]
    size: list[Atom]
    score_axes: Axes
    value: Operand = field(init=False)
    value_size: list[Atom] = field(default_factory=list)
    output: Axes = field(default_factory=list)
    scale: float = 1.0
    multipliers: list[tuple[Operand, bool]] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    states: list[tuple[ir.Value, Axes]] = field(default_factory=list)


def read_chain(chain: Chain) -> Reading:
    """Follow the axes through a chain.

    Raises:
        Mismatch: something in it is no attention, or can't be told.
    """
    left, right = (_known(v) for v in chain.scores.inputs[:2])
    batch, first, second, size, axes = _product_axes(left, right, chain.scores)
    reading = Reading(left, right, batch, first, second, size, axes)
    state = axes
    reading.states.append((chain.scores.outputs[0], state))
    for step in chain.before:
        state = _absorb(step, state, reading)
        reading.states.append((step.node.outputs[0], state))
    _orient(reading, _softmax_axis(chain.softmax, state))
    reading.states.append((chain.softmax.outputs[0], state))
    for step in chain.after:
        state = _pass(step.node, state)
        reading.states.append((step.node.outputs[0], state))
    _read_values(chain.values, state, reading)
    _check_fills(reading.terms)
    for operand, _ in reading.multipliers:
        if {leaf for axis in operand.axes for leaf in leaves(axis)} & set(leaves(reading.keys)):
            raise Mismatch("its scores are multiplied by a tensor that differs from key to key")
    for role in ("batch", "rows", "keys", "size", "value_size"):
        setattr(reading, role, leaves(getattr(reading, role)))
    return reading


def _known(value: ir.Value | None) -> Operand:
    axes = axes_of(value) if value is not None else None
    if value is None or axes is None or len(axes) < 2:
        raise Mismatch("the rank of one of its operands is unknown")
    return Operand(value, axes)


def _product_axes(
    left: Operand, right: Operand, product: ir.Node
) -> tuple[list[Atom], list[Atom], list[Atom], list[Atom], Axes]:
    """Give both operands of a product common atoms: batch, rows of the left, columns of the right,
    contracted; and its axes."""
    rank = max(len(left.axes), len(right.axes))
    batch: Axes = []
    for axis in range(-rank, -2):
        sides = [
            side.axes[axis] for side in (left, right) if -axis <= len(side.axes) and side.axes[axis]
        ]
        group = next(
            (s for s in sides if size_of(leaves(s)).static is not None), sides[0] if sides else []
        )
        for side in (left, right):
            if -axis <= len(side.axes) and side.axes[axis]:
                side.axes[axis] = group
        batch.append(group)
    inner = right.axes[-2] if size_of(right.axes[-2]).static is not None else left.axes[-1]
    left.axes[-1] = right.axes[-2] = inner
    axes = [*batch, left.axes[-2], right.axes[-1]]
    return [atom for group in batch for atom in group], left.axes[-2], right.axes[-1], inner, axes


def _pass(node: ir.Node, state: Axes) -> Axes:
    """Axes behind an operator that computes nothing."""
    if node.op_type in LAYOUT_OPS:
        following = follow(node, state)
        if following is None:
            raise Mismatch(f"its {node.op_type} can't be followed")
        return following
    if node.op_type == "Where":
        return state
    if node.op_type == "Expand":
        source, shape = node.inputs[0], node.outputs[0].shape
        if source is None or shape is None or list(shape) != list(source.shape or ()):
            raise Mismatch("its scores are expanded")
    if (
        node.op_type == "Cast"
        and not ir.DataType(node.attributes["to"].as_int()).is_floating_point()
    ):
        raise Mismatch("its scores are cast to integers")
    return state


def _absorb(step: Step, state: Axes, reading: Reading) -> Axes:
    """Read one operator between the first product and the softmax."""
    node, name = step.node, step.node.op_type
    if name in LAYOUT_OPS or name in ("Cast", "Identity", "Dropout", "Expand"):
        return _pass(node, state)
    if name == "Where":
        _read_fill(step, state, reading)
        return state
    if name in ("Clip", "Max", "Min"):
        limits = [
            scalar_of(v) for i, v in enumerate(node.inputs) if i != step.operand and v is not None
        ]
        if any(limit is None or abs(limit) < WIDE for limit in limits):
            raise Mismatch(f"its scores are limited by {name}")
        for term in reading.terms:
            for limit in limits:
                if (
                    term.fill is not None
                    and limit is not None
                    and name != "Min"
                    and term.score < limit < 0
                ):
                    term.fill = limit / term.factor
        return state
    other = node.inputs[1 - step.operand]
    assert other is not None
    constant = scalar_of(other)
    if name in ("Mul", "Div"):
        if constant is not None:
            factor = constant if name == "Mul" else 1 / constant
            reading.scale *= factor
            for term in reading.terms:
                term.factor *= factor
            return state
        operand = _beside(other, state)
        if reading.terms:
            raise Mismatch("its scores are multiplied after a bias or mask")
        reading.multipliers.append((operand, name == "Div"))
        return state
    if name == "Sub" and _is_row_maximum(other):
        return state
    if constant is None:  # one number on all scores changes no softmax
        bias = Term(_beside(other, state), -1.0 if name == "Sub" else 1.0)
        levels, outside = _hiding_levels(other)
        bias.may_hide = outside or bool(levels)
        reading.terms.append(bias)
    return state


def _read_fill(step: Step, state: Axes, reading: Reading) -> None:
    condition, fill = step.node.inputs[0], scalar_of(step.node.inputs[3 - step.operand])
    assert condition is not None
    if fill is None:
        raise Mismatch("its scores are replaced by other values where masked")
    if fill > -WIDE:
        raise Mismatch(f"its scores are replaced by {fill:g} where masked, which doesn't hide them")
    reading.terms.append(Term(_beside(condition, state), 1.0, fill, hidden=step.operand == 2))


def _check_fills(terms: list[Term]) -> None:
    """Finite fills must hide, and must not come to lie beside what a bias hides with: such rows mix
    scores and fills."""
    for term in terms:
        if not term.finite:
            continue
        if term.score > -_HIDES:
            raise Mismatch(
                f"its scores are replaced by {term.score:g} where masked, which doesn't hide them"
            )
        for bias in terms:
            levels = _hiding_levels(bias.operand.value)[0] if bias.fill is None else set()
            for level in (abs(x * bias.factor) for x in levels):
                if term.score > -_ABSORBS and level / 2 <= -term.score <= level * 2:
                    raise Mismatch(
                        f"its scores are replaced by {term.score:g} where masked, and biased by "
                        f"{-level:g}: "
                        "rows where both hide every key mix scores and fills"
                    )


def _hiding_levels(value: ir.Value) -> tuple[set[float], bool]:
    """Numbers behind a bias that are large enough to hide keys, and whether it comes from outside,
    where it may hold any."""
    levels: set[float] = set()
    outside = False
    seen, pending = {value}, [value]
    while pending:
        current = pending.pop()
        tensor = ir.convenience.get_const_tensor(current)
        node = current.producer()
        if tensor is not None:
            if tensor.dtype.is_floating_point() and tensor.size > 0:
                largest = float(np.abs(tensor.numpy().astype(np.float64)).max())
                levels |= {largest} if largest >= _HIDES else set()
        elif node is None:
            outside |= current.dtype is not None and current.dtype.is_floating_point()
        elif node.op_type not in _BOUNDED:
            found = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(found)
            pending += found
    return levels, outside


def _is_row_maximum(value: ir.Value) -> bool:
    """A maximum over all scores, or over the last axis: subtracting it changes no softmax over that
    axis."""
    node = value.producer()
    if node is None or node.op_type != "ReduceMax":
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    given = (
        ir.convenience.get_const_tensor(node.inputs[1])
        if len(node.inputs) > 1 and node.inputs[1] is not None
        else None
    )
    if "axes" in node.attributes:
        axes = set(node.attributes["axes"].as_ints())
    elif len(node.inputs) < 2 or node.inputs[1] is None:
        return True
    elif given is not None:
        axes = set(given.numpy().reshape(-1).tolist())
    else:
        return False
    rank = len(shape) if shape is not None else 0
    return (
        not axes
        or {a % rank if rank else a for a in axes} in ({rank - 1}, set(range(rank)))
        or axes == {-1}
    )


def _beside(value: ir.Value, state: Axes) -> Operand:
    """A value that is broadcast with the scores, with the scores' atoms."""
    if value.shape is None:
        raise Mismatch("the shape of a mask or bias is unknown")
    rank = len(value.shape)
    if rank > len(state):
        raise Mismatch("a mask or bias has more axes than the scores")
    axes: Axes = []
    own = axes_of(value)
    assert own is not None
    for group, atoms in zip(state[len(state) - rank :], own, strict=True):
        if atoms and not group:
            raise Mismatch("a mask or bias is larger than the scores")
        axes.append(group if atoms else [])
    return Operand(value, axes)


def _softmax_axis(node: ir.Node, state: Axes) -> list[Atom]:
    axis = node.attributes.get_int("axis", -1)
    assert axis is not None
    return leaves(state[axis])


def _orient(reading: Reading, softmax: list[Atom]) -> None:
    """Call the side that the softmax runs over the keys."""
    if softmax == leaves(reading.keys):
        return
    if softmax != leaves(reading.rows):
        raise Mismatch("its softmax is over another axis than the keys'")
    reading.query, reading.key = reading.key, reading.query
    reading.rows, reading.keys = reading.keys, reading.rows


def _read_values(step: Step, state: Axes, reading: Reading) -> None:
    other = _known(step.node.inputs[1 - step.operand])
    on_left = step.operand == 0
    contracted, rows = (state[-1], state[-2]) if on_left else (state[-2], state[-1])
    if leaves(contracted) != leaves(reading.keys):
        raise Mismatch(
            "its softmax is over another axis than the one that the product with the values sums "
            "over"
        )
    if leaves(rows) != leaves(reading.rows):
        raise Mismatch("its query rows can't be told from its batch")
    axes = other.axes
    rank = max(len(axes), len(state))
    batch: Axes = []
    for axis in range(-rank, -2):
        ours = state[axis] if -axis <= len(state) else []
        theirs = axes[axis] if -axis <= len(axes) else []
        if theirs and not ours:
            raise Mismatch("its values have batch axes that its scores lack")
        if theirs:
            axes[axis] = ours
        batch.append(ours)
    axes[-2 if on_left else -1] = contracted
    reading.value = other
    reading.value_size = axes[-1 if on_left else -2]
    own = [rows, reading.value_size] if on_left else [reading.value_size, rows]
    reading.output = [*batch, *own]
