"""The chain of a written-out attention: from the product of queries and keys over a softmax to the
product with the values.

`find_chains` walks from a ``Softmax`` back to the first product and forward to the second, through
operators that a fused attention can absorb. What it can't pass is the reason why the attention is
not fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import LAYOUT_OPS

__all__ = ["WIDE", "Chain", "Mismatch", "Step", "active_values", "find_chains", "scalar_of"]

WIDE = 1e4
"""A limit on scores at least this far out acts only on scores whose weights are 0 already."""

_PASSED = LAYOUT_OPS | {"Cast", "Identity", "Dropout", "Expand"}
_BINARY = {
    "Add": (0, 1),
    "Sub": (0,),
    "Mul": (0, 1),
    "Div": (0,),
    "Where": (1, 2),
    "Clip": (0,),
    "Max": (0, 1),
    "Min": (0, 1),
}
_DEEPEST = 64


class Mismatch(Exception):  # noqa: N818 -- an outcome with its reason, not an error
    """Why an attention can't be fused."""


@dataclass(frozen=True)
class Step:
    """A node of the chain, and which of its inputs the chain comes in by."""

    node: ir.Node
    operand: int


@dataclass(frozen=True)
class Chain:
    """A written-out attention.

    Attributes:
        scores: the product of queries and keys.
        before, softmax, after: what lies between it and `values`, in order.
        values: the product with the values, and the side that the probabilities are on.
        helpers: nodes beside the chain that feed it from itself (a maximum that is subtracted, a
            check for NaN).
    """

    scores: ir.Node
    before: tuple[Step, ...]
    softmax: ir.Node
    after: tuple[Step, ...]
    values: Step
    helpers: tuple[ir.Node, ...] = field(default=())

    def interior(self) -> set[ir.Node]:
        """Nodes that the fused operator replaces, the last product excepted."""
        steps = {step.node for step in (*self.before, *self.after)}
        return steps | {self.scores, self.softmax, *self.helpers}


def active_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that depend on the graph's inputs, rather than on weights alone; on their sizes is
    enough, as in learned queries that are repeated for each sample."""
    active = set(graph.inputs)
    for node in graph:
        if any(v in active for v in node.inputs if v is not None):
            active.update(node.outputs)
    return active


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a value holds, where it is a constant of one element."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1 or tensor.dtype.is_string():
        return None
    return float(np.asarray(tensor.numpy(), dtype=np.float64).reshape(()))


def find_chains(softmax: ir.Node, active: set[ir.Value]) -> list[Chain]:
    """Every attention that a softmax is the softmax of.

    Raises:
        Mismatch: there is one, but it has another form; with the reason.
    """
    source = softmax.inputs[0]
    assert source is not None
    found = _back(source, active, 0)
    if found is None:
        raise Mismatch(_why_not_back(source, active))
    scores, before, helpers = found
    probabilities = softmax.outputs[0]
    if probabilities.is_graph_output():
        raise Mismatch("its attention probabilities are an output of the model")
    ends = list(_forward(probabilities, active))
    if not ends:
        raise Mismatch("no product follows its softmax")
    return [
        Chain(scores, before, softmax, after, last, (*helpers, *extra))
        for after, last, extra in ends
    ]


_Found = tuple[ir.Node, tuple[Step, ...], tuple[ir.Node, ...]]


def _back(value: ir.Value, active: set[ir.Value], depth: int) -> _Found | None:
    """The product behind a value, the steps from there to it, and helper nodes."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or depth > _DEEPEST:
        return None
    if node.op_type == "MatMul":
        return (
            (node, (), ())
            if all(v in active for v in node.inputs) or _right_only(node, active)
            else None
        )
    if node.op_type in _PASSED:
        sources: tuple[int, ...] = (0,)
    else:
        sources = _BINARY.get(node.op_type, ())
    candidates: list[_Found] = []
    for operand in sources:
        source = node.inputs[operand] if operand < len(node.inputs) else None
        if source is None or source not in active:
            continue
        found = _back(source, active, depth + 1)
        if found is not None:
            scores, steps, helpers = found
            candidates.append(
                (
                    scores,
                    (*steps, Step(node, operand)),
                    (*helpers, *_subtracted_maximum(node, operand)),
                )
            )
    # A product of two activations is the scores; one with weights beside it makes a bias out of the
    # queries.
    candidates.sort(key=lambda c: not all(v in active for v in c[0].inputs))
    return candidates[0] if candidates else None


def _right_only(node: ir.Node, active: set[ir.Value]) -> bool:
    """Learned queries that no layer projects: weights on the left, with an axis of their own, and
    keys on the right."""
    left, right = node.inputs[:2]
    return (
        left is not None
        and right is not None
        and right in active
        and right.shape is not None
        and len(right.shape) > 2
    )


def _subtracted_maximum(node: ir.Node, operand: int) -> tuple[ir.Node, ...]:
    other = node.inputs[1 - operand] if node.op_type == "Sub" else None
    helper = other.producer() if other is not None else None
    return (helper,) if helper is not None and helper.op_type == "ReduceMax" else ()


def _why_not_back(value: ir.Value, active: set[ir.Value]) -> str:
    """Name the first operator on the way back that a fused attention can't absorb."""
    node = value.producer()
    while node is not None and (node.op_type in _PASSED or node.op_type in _BINARY):
        steps = [node.inputs[i] for i in (_BINARY.get(node.op_type, (0,))) if i < len(node.inputs)]
        following = [v for v in steps if v is not None and v in active]
        if not following:
            return "its softmax is not over a product of activations"
        node = following[0].producer()
    if node is None:
        return "its softmax is not over a product of activations"
    if node.op_type == "MatMul":
        return "its scores are a product with weights, so there are no keys"
    return f"its scores go through {node.op_type} on the way to the softmax"


def _forward(
    value: ir.Value, active: set[ir.Value]
) -> Iterator[tuple[tuple[Step, ...], Step, tuple[ir.Node, ...]]]:
    """Every way from the probabilities to a product, with the steps and helper nodes."""
    uses = list(value.uses())
    guard = _nan_guard(uses)
    if guard is not None:
        check, where = guard
        operand = next(i for i in (1, 2) if where.inputs[i] is value)
        for after, last, helpers in _forward(where.outputs[0], active):
            yield (Step(where, operand), *after), last, (check, *helpers)
        return
    if not uses:
        raise Mismatch("its attention probabilities lead nowhere")
    for node, index in uses:
        if node.op_type == "MatMul":
            other = node.inputs[1 - index]
            if other is None or other not in active:
                raise Mismatch(
                    "its probabilities are multiplied with weights, so there are no values"
                )
            yield (), Step(node, index), ()
            continue
        if node.op_type not in _PASSED or index != 0:
            raise Mismatch(f"its attention probabilities go through {node.op_type}")
        out = node.outputs[0]
        if out.is_graph_output():
            raise Mismatch("its attention probabilities are an output of the model")
        for after, last, helpers in _forward(out, active):
            yield (Step(node, index), *after), last, helpers


def _nan_guard(uses: Sequence[tuple[ir.Node, int]]) -> tuple[ir.Node, ir.Node] | None:
    """``Where(IsNaN(p), 0, p)``: rows without keys get 0, which the fused operator gives by
    itself."""
    if len(uses) != 2:
        return None
    checks = [node for node, _ in uses if node.op_type == "IsNaN"]
    wheres = [node for node, _ in uses if node.op_type == "Where"]
    if len(checks) != 1 or len(wheres) != 1 or wheres[0].inputs[0] is not checks[0].outputs[0]:
        return None
    return (checks[0], wheres[0]) if scalar_of(wheres[0].inputs[1]) == 0 else None
