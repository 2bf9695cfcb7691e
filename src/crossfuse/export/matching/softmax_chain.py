"""The chain of a written-out attention: from the product of queries and keys over a softmax to the
product with the values.

`find_softmax_chains` walks from a ``Softmax`` back to the first product and forward to the second,
through operators that a fused attention can absorb. What it can't pass is the reason why the
attention is not fused. What the operators compute is read later, by `attention_match`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import LAYOUT_OPS

__all__ = [
    "WIDE",
    "ChainNode",
    "Mismatch",
    "SoftmaxChain",
    "active_values",
    "find_softmax_chains",
    "scalar_of",
]

WIDE = 1e4
"""A limit on scores at least this far out acts only on scores whose weights are 0 already."""

_PASSED = LAYOUT_OPS | {"Cast", "Identity", "Dropout", "Expand"}
"""Operators that a chain runs through by their first input, before and after the softmax."""

_ARITHMETIC = {
    "Add": (0, 1),
    "Sub": (0,),
    "Neg": (0,),
    "Mul": (0, 1),
    "Div": (0,),
    "Where": (1, 2),
    "Clip": (0,),
    "Max": (0, 1),
    "Min": (0, 1),
}
"""Operators on scores that a fused attention can absorb, and by which inputs scores may come in."""

_CUTTING = frozenset({"Slice"})
"""Operators that take such columns off the probabilities."""

_JOINING = frozenset({"Concat", "Pad"})
"""Operators that join columns to scores, as sinks are."""

_GATES = {"Mul": (0, 1), "Div": (0,), "Where": (1, 2)}
"""Operators on probabilities that a fused attention can absorb, and by which inputs."""

_NAMES = {
    "Tanh": ", a soft cap, which the fused operator does not have",
    "ScatterND": ", an assignment to places of theirs that is no mask",
}
"""What an operator on scores is to people."""

_DEEPEST = 64
"""How many operators back from a softmax a product is looked for."""


class Mismatch(Exception):  # noqa: N818 -- an outcome with its reason, not an error
    """Why an attention can't be fused."""


@dataclass(frozen=True)
class ChainNode:
    """A node of the chain, and which of its inputs the chain comes in by."""

    node: ir.Node
    operand: int


@dataclass(frozen=True)
class SoftmaxChain:
    """A written-out attention, as nodes.

    Attributes:
        scores: the product of queries and keys.
        before, softmax, after: what lies between it and `values`, in order.
        values: the product with the values, and the side that the probabilities are on.
        helpers: nodes beside the chain that feed it from itself (a maximum that is subtracted, a
            check for NaN).
    """

    scores: ir.Node
    before: tuple[ChainNode, ...]
    softmax: ir.Node
    after: tuple[ChainNode, ...]
    values: ChainNode
    helpers: tuple[ir.Node, ...] = ()

    def interior(self) -> set[ir.Node]:
        """Nodes that the fused operator replaces, the last product excepted."""
        between = {link.node for link in (*self.before, *self.after)}
        return between | {self.scores, self.softmax, *self.helpers}


class _WayBack(NamedTuple):
    """From a softmax's input back to a product."""

    scores: ir.Node
    between: tuple[ChainNode, ...]
    helpers: tuple[ir.Node, ...]


class _WayOn(NamedTuple):
    """From a softmax's result on to a product."""

    between: tuple[ChainNode, ...]
    values: ChainNode
    helpers: tuple[ir.Node, ...]


class _NanGuard(NamedTuple):
    """``Where(IsNaN(p), 0, p)``, the two nodes."""

    check: ir.Node
    where: ir.Node


def active_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that depend on the graph's inputs, rather than on weights alone.

    To depend on their sizes is enough, as learned queries do that are repeated for each sample.
    """
    active = set(graph.inputs)
    for node in graph:
        if any(v in active for v in node.inputs if v is not None):
            active.update(node.outputs)
    return active


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a value holds, where it is a constant of one element, or one that was
    expanded."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Expand" and node.domain in ("", "ai.onnx"):
        return scalar_of(node.inputs[0])
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1 or tensor.dtype.is_string():
        return None
    return float(np.asarray(tensor.numpy(), dtype=np.float64).reshape(()))


def find_softmax_chains(softmax: ir.Node, active: set[ir.Value]) -> list[SoftmaxChain]:
    """Every attention that a softmax is the softmax of: one per product that its result goes to.

    Args:
        softmax: the node.
        active: `active_values` of its graph.

    Raises:
        Mismatch: there is one, but it has another form; with the reason.
    """
    source = softmax.inputs[0]
    assert source is not None
    back = _way_back(source, active, 0)
    if back is None:
        raise Mismatch(_why_no_way_back(source, active))
    probabilities = softmax.outputs[0]
    if probabilities.is_graph_output():
        raise Mismatch("its attention probabilities are an output of the model")
    ways_on = list(_ways_on(probabilities, active))
    if not ways_on:
        raise Mismatch("no product follows its softmax")
    return [
        SoftmaxChain(
            back.scores, back.between, softmax, on.between, on.values, (*back.helpers, *on.helpers)
        )
        for on in ways_on
    ]


def _way_back(value: ir.Value, active: set[ir.Value], depth: int) -> _WayBack | None:
    """The product behind a value, the nodes from there to it, and helper nodes."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or depth > _DEEPEST:
        return None
    if node.op_type == "MatMul":
        return _WayBack(node, (), ()) if _is_product_of_scores(node, active) else None
    candidates: list[_WayBack] = []
    for operand in _operands_of_scores(node):
        source = node.inputs[operand] if operand < len(node.inputs) else None
        if source is None or source not in active:
            continue
        back = _way_back(source, active, depth + 1)
        if back is not None:
            between = (*back.between, ChainNode(node, operand))
            helpers = (*back.helpers, *_subtracted_maximum(node, operand))
            candidates.append(_WayBack(back.scores, between, helpers))
    # A product of two activations is the scores; one with weights beside it makes a bias out of the
    # queries.
    candidates.sort(key=lambda back: not _is_of_activations(back.scores, active))
    return candidates[0] if candidates else None


def _operands_of_scores(node: ir.Node) -> tuple[int, ...]:
    """The inputs of a node by which scores may come in; none where it can't be absorbed."""
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    passed = node.op_type in _PASSED | _JOINING
    return (0,) if passed else _ARITHMETIC.get(node.op_type, ())


def _operands_of_probabilities(node: ir.Node) -> tuple[int, ...]:
    """The inputs of a node by which probabilities may come in; none where it can't be absorbed."""
    passed = node.op_type in _PASSED | _CUTTING
    return (0,) if passed else _GATES.get(node.op_type, ())


def _is_product_of_scores(product: ir.Node, active: set[ir.Value]) -> bool:
    return _is_of_activations(product, active) or _is_of_learned_queries(product, active)


def _is_of_activations(product: ir.Node, active: set[ir.Value]) -> bool:
    return all(v in active for v in product.inputs)


def _is_of_learned_queries(product: ir.Node, active: set[ir.Value]) -> bool:
    """Learned queries that no layer projects: weights on the left, and keys on the right, with a
    batch axis."""
    left, right = product.inputs[:2]
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
    if helper is not None and helper.op_type == "Unsqueeze":
        reduced = helper.inputs[0].producer() if helper.inputs[0] is not None else None
        return (helper, reduced) if reduced is not None and reduced.op_type == "ReduceMax" else ()
    return (helper,) if helper is not None and helper.op_type == "ReduceMax" else ()


def _why_no_way_back(value: ir.Value, active: set[ir.Value]) -> str:
    """Name the first operator on the way back that a fused attention can't absorb."""
    node = _in_the_way(value, active)
    if node is None:
        return "its softmax is not over a product of activations"
    if node.op_type == "MatMul":
        if _mixes_scores(node, active):
            return (
                "its scores are mixed by weights on the way to the softmax, which the fused "
                "operator does not have"
            )
        return "its scores are a product with weights, so there are no keys"
    what = _NAMES.get(node.op_type, "")
    return f"its scores go through {node.op_type} on the way to the softmax{what}"


def _in_the_way(value: ir.Value | None, active: set[ir.Value]) -> ir.Node | None:
    """The first operator on the way back that can't be absorbed; None where the way ends in an
    input or a weight."""
    node = value.producer() if value is not None else None
    while node is not None and (node.op_type in _PASSED or node.op_type in _ARITHMETIC):
        operands = _ARITHMETIC.get(node.op_type, (0,))
        sources = [node.inputs[i] for i in operands if i < len(node.inputs)]
        following = [v for v in sources if v is not None and v in active]
        node = following[0].producer() if following else None
    return node


def _mixes_scores(product: ir.Node, active: set[ir.Value]) -> bool:
    """A product with weights of another that may be scores: of activations, none of them
    probabilities."""
    mixed = next((v for v in product.inputs if v in active), None)
    before = _in_the_way(mixed, active)
    if before is None or before.op_type != "MatMul" or not _is_of_activations(before, active):
        return False
    behind = (_in_the_way(operand, active) for operand in before.inputs)
    return all(node is None or node.op_type != "Softmax" for node in behind)


def _ways_on(value: ir.Value, active: set[ir.Value]) -> Iterator[_WayOn]:
    """Every way from the probabilities to a product, with the nodes between and helper nodes."""
    # A size that is read off probabilities can be read off the operands.
    uses = [use for use in value.uses() if use[0].op_type != "Shape"]
    guard = _nan_guard(uses)
    if guard is not None:
        operand = next(i for i in (1, 2) if guard.where.inputs[i] is value)
        for on in _ways_on(guard.where.outputs[0], active):
            between = (ChainNode(guard.where, operand), *on.between)
            yield _WayOn(between, on.values, (guard.check, *on.helpers))
        return
    if not uses:
        raise Mismatch("its attention probabilities lead nowhere")
    for node, index in uses:
        if node.op_type == "MatMul":
            yield _end(node, index, active)
            continue
        if index not in _operands_of_probabilities(node):
            raise Mismatch(_otherwise(node, uses))
        out = node.outputs[0]
        if out.is_graph_output():
            raise Mismatch("its attention probabilities are an output of the model")
        for on in _ways_on(out, active):
            yield on._replace(between=(ChainNode(node, index), *on.between))


def _otherwise(node: ir.Node, uses: Sequence[tuple[ir.Node, int]]) -> str:
    """Why a use of probabilities is in the way: beside another that may come to the values, or on
    the only way there."""
    if any(
        user.op_type == "MatMul" or place in _operands_of_probabilities(user)
        for user, place in uses
    ):
        return f"its attention probabilities are also used by {node.op_type}"
    return (
        f"its attention probabilities go through {node.op_type}, which the fused operator does not "
        "have"
    )


def _end(product: ir.Node, index: int, active: set[ir.Value]) -> _WayOn:
    """The way that ends in this product."""
    other = product.inputs[1 - index]
    if other is None or other not in active:
        raise Mismatch("its probabilities are multiplied with weights, so there are no values")
    return _WayOn((), ChainNode(product, index), ())


def _nan_guard(uses: Sequence[tuple[ir.Node, int]]) -> _NanGuard | None:
    """``Where(IsNaN(p), 0, p)``: rows without keys get 0, which the fused operator gives by
    itself."""
    if len(uses) != 2:
        return None
    checks = [node for node, _ in uses if node.op_type == "IsNaN"]
    wheres = [node for node, _ in uses if node.op_type == "Where"]
    if len(checks) != 1 or len(wheres) != 1 or wheres[0].inputs[0] is not checks[0].outputs[0]:
        return None
    return _NanGuard(checks[0], wheres[0]) if scalar_of(wheres[0].inputs[1]) == 0 else None
