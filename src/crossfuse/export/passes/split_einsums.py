"""Write an ``Einsum`` of several operands as products of two, and one that sums nothing as ``Mul``.

Rules:

1. Of three operands or more, two are taken at a time, until two are left. First one whose labels
another operand has as well, where nothing is summed by taking these two; then the two whose product
has the fewest axes, the first of these. What one operand alone sums is summed first.
2. Of two operands, of which one has all labels of the other and of the result, becomes transposes
and a ``Mul``.

It must not fire on repeated labels (a diagonal), on operands of unknown rank, on fewer than two
operands that depend on inputs where there are three or more, nor where only weights are multiplied.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from crossfuse.export.matching.equations import Equation, read_equation
from crossfuse.export.matching.softmax_chain import active_values
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, rank_of

__all__ = ["SplitEinsumsPass"]

_Dim = int | str | None


class _Operand(NamedTuple):
    """A value, and the label of each of its axes."""

    value: ir.Value
    labels: str


class SplitEinsumsPass(FusionPass):
    """``Einsum`` of many operands → of two; ``Einsum`` that sums nothing → ``Mul``."""

    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite in place."""
        active = active_values(model.graph)
        modified = False
        for node in list(model.graph):
            if not is_onnx(node, "Einsum"):
                continue
            equation = _equation(node)
            moving = sum(v in active for v in node.inputs)
            if equation is None or moving < len(node.inputs[:2]) - (len(node.inputs) == 2):
                continue
            made = _Products(node, equation).result()
            if made is not None:
                made.build.replace(node, made.value)
                modified = True
        return FusionResult(model, modified)


def _equation(node: ir.Node) -> Equation | None:
    """The equation of two operands or more with one label per axis; None of others."""
    ranks = [rank_of(value) for value in node.inputs]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < 2 or len(known) < len(ranks):
        return None
    equation = read_equation(node.attributes["equation"].as_string(), known)
    if equation is None or "." in "".join(equation.operands):
        return None
    plain = all(len(set(t)) == len(t) for t in (*equation.operands, equation.result))
    return equation if plain else None


class _Made(NamedTuple):
    build: GraphBuilder
    value: ir.Value


class _Products:
    """The products of one node."""

    def __init__(self, node: ir.Node, equation: Equation) -> None:
        self.build = GraphBuilder()
        self.like = node.outputs[0]
        self.target = equation.result
        values = [v for v in node.inputs if v is not None]
        self.operands = [_Operand(*each) for each in zip(values, equation.operands, strict=True)]
        self.dims = _dims(self.operands)

    def result(self) -> _Made | None:
        """The last product; None where there is nothing to split."""
        several = len(self.operands) > 2
        if several:
            self.operands = [self._summed(i) for i in range(len(self.operands))]
        while len(self.operands) > 2:
            first, second = self._next()
            made = self._product(first, second, self._kept(first, second))
            self.operands[first] = made
            del self.operands[second]
        if self._is_elementwise(0, 1) or self._is_elementwise(1, 0):
            return _Made(self.build, self._multiplied(0, 1, self.target).value)
        return _Made(self.build, self._product(0, 1, self.target).value) if several else None

    def _next(self) -> tuple[int, int]:
        """The two operands that are taken next, in their order."""
        pairs = list(itertools.combinations(range(len(self.operands)), 2))
        for pair in pairs:
            if self._is_elementwise(*pair) or self._is_elementwise(*reversed(pair)):
                return pair
        return min(pairs, key=lambda pair: len(self._kept(*pair)))

    def _needed(self, *without: int) -> set[str]:
        """Labels of the result and of the other operands."""
        others = (o.labels for i, o in enumerate(self.operands) if i not in without)
        return set("".join([self.target, *others]))

    def _kept(self, first: int, second: int) -> str:
        """Labels of two operands' product."""
        order = (second, first) if self._is_elementwise(second, first) else (first, second)
        both = dict.fromkeys("".join(self.operands[i].labels for i in order))
        needed = self._needed(first, second)
        return "".join(label for label in both if label in needed)

    def _is_elementwise(self, large: int, small: int) -> bool:
        """The product of two operands sums nothing, and has the labels of the first."""
        labels = set(self.operands[large].labels)
        return set(self.operands[small].labels) <= labels <= self._needed(large, small)

    def _summed(self, which: int) -> _Operand:
        """An operand without the labels that it alone sums."""
        value, labels = self.operands[which]
        needed = self._needed(which)
        lost = [i for i, label in enumerate(labels) if label not in needed]
        if not lost:
            return self.operands[which]
        kept = "".join(label for label in labels if label in needed)
        axes, shape = self.build.ints(*lost), self._shape(kept)
        made = self.build.op("ReduceSum", value, axes, like=value, shape=shape, keepdims=0)
        return _Operand(made, kept)

    def _product(self, first: int, second: int, labels: str) -> _Operand:
        if self._is_elementwise(first, second) or self._is_elementwise(second, first):
            return self._multiplied(first, second, labels)
        left, right = self.operands[first], self.operands[second]
        text = f"{left.labels},{right.labels}->{labels}"
        values = (left.value, right.value)
        shape = self._shape(labels)
        made = self.build.op("Einsum", *values, like=self.like, shape=shape, equation=text)
        return _Operand(made, labels)

    def _multiplied(self, first: int, second: int, labels: str) -> _Operand:
        sides = [self._placed(self.operands[i], labels) for i in (first, second)]
        made = self.build.op("Mul", *sides, like=self.like, shape=self._shape(labels))
        return _Operand(made, labels)

    def _placed(self, operand: _Operand, labels: str) -> ir.Value:
        """The operand with its axes in the order of labels, and one of size 1 for each that it
        lacks behind its first."""
        value, own = operand
        order = [label for label in labels if label in own]
        perm = [own.index(label) for label in order]
        if perm != sorted(perm):
            shape = [dim_of(value, axis) for axis in perm]
            value = self.build.op("Transpose", value, like=value, shape=shape, perm=perm)
        start = labels.index(order[0]) if order else len(labels)
        missing = [i for i, label in enumerate(labels[start:]) if label not in own]
        if missing:
            dims = {label: dim_of(value, axis) for axis, label in enumerate(order)}
            shape = [dims.get(label, 1) for label in labels[start:]]
            axes = self.build.ints(*missing)
            value = self.build.op("Unsqueeze", value, axes, like=value, shape=shape)
        return value

    def _shape(self, labels: str) -> Sequence[_Dim]:
        return [self.dims[label] for label in labels]


def _dims(operands: Sequence[_Operand]) -> Mapping[str, _Dim]:
    """Label → size; of the operand that does not broadcast, a number where one has it."""
    found: dict[str, _Dim] = {}
    for value, labels in operands:
        for axis, label in enumerate(labels):
            dim, known = dim_of(value, axis), found.get(label)
            if label not in found or known in (None, 1) or (isinstance(dim, int) and dim != 1):
                found[label] = dim
    return found
