"""The census of an ONNX file: its attentions counted by what flows from product to product, without
the passes.

The same definition as in `census`, on nodes instead of operators that run: an attention is a
product of two activations whose result goes through something that is not linear along the way to a
second product with an activation; or a node that is one. The first product may also be of learned
queries, weights on its left, where a softmax follows. Bodies of ``If``, ``Loop`` and ``Scan`` are
counted, too; and a product that is written as a sum over a multiplication is one where a softmax is
between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from crossfuse.export.capture.census import Sighting
from crossfuse.graph.metadata import module_path
from crossfuse.graph.summed_products import summed_product

__all__ = ["graph_census", "nested_attentions"]

_PRODUCTS: dict[str, tuple[int, int]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Einsum": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
}
"""Operator → which inputs it multiplies."""

_NODES = {"Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedAttention"}
_LINEAR = frozenset(
    {
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity", "Cast"),
        *("Slice", "Split", "Concat", "Gather", "Tile", "Pad", "Dropout"),
        *("Mul", "Div", "Add", "Sub", "Where", "Neg"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }
)
_SHAPES = {"Shape", "Size"}


@dataclass
class _Scores:
    steps: list[str] = field(default_factory=list)
    returned: bool = False
    asks_softmax: bool = False

    @property
    def softmax(self) -> bool:
        """The operator, or exponentials and their sum."""
        written = "Exp" in self.steps and bool({"ReduceSum", "ReduceLogSumExp"} & {*self.steps})
        return written or any("Softmax" in step for step in self.steps)

    @property
    def normalised(self) -> bool:
        if self.asks_softmax:
            return self.softmax
        return any(step not in _LINEAR for step in self.steps)


def graph_census(model: ir.Model) -> list[Sighting]:
    """Attentions in the graph's order."""
    count = _Count()
    count.graph(model.graph)
    return [sighting for sighting, _ in count.found]


def nested_attentions(model: ir.Model) -> list[tuple[str, str]]:
    """Those within the bodies of other nodes: the module's path, and the operator whose body it
    is."""
    count = _Count()
    count.graph(model.graph)
    return [(sighting.module, body) for sighting, body in count.found if body]


class _Count:
    """A walk through a graph and the bodies within it."""

    def __init__(self) -> None:
        self.active: set[ir.Value] = set()
        self.scores: dict[ir.Value, _Scores] = {}
        self.found: list[tuple[Sighting, str]] = []

    def graph(self, graph: ir.Graph, body: str = "") -> None:
        """Count; ``body`` is the operator that the graph is a body of."""
        self.active.update(graph.inputs)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    self.graph(attribute.as_graph(), node.op_type)
                    self.active.update(node.outputs)
            self._node(node, body)

    def _node(self, node: ir.Node, body: str) -> None:
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type in _SHAPES or not any(v in self.active for v in inputs):
            return
        self.active.update(node.outputs)
        if node.op_type in _NODES:
            self.found.append((Sighting(module_path(node), "sdpa"), body))
        elif node.op_type in _PRODUCTS:
            self._product(node, self._operands(node), body)
        elif (summed := summed_product(node)) and (pair := summed.multiplied(self.active)):
            self._of_activations(node, pair, body, summed=True)
        else:
            source = next((self.scores[v] for v in inputs if v in self.scores), None)
            if source is not None:
                of_number = node.op_type == "Pow" and node.inputs[0] not in self.scores
                source.steps.append("Exp" if of_number else node.op_type)
                source.returned |= source.normalised and any(
                    v.is_graph_output() for v in node.outputs
                )
                self.scores.update(dict.fromkeys(node.outputs, source))

    def _operands(self, node: ir.Node) -> list[ir.Value | None]:
        """The two values that are multiplied; of an ``Einsum`` of more, those that are no
        weights."""
        moving: list[ir.Value | None] = [v for v in node.inputs if v in self.active]
        if node.op_type == "Einsum" and len(node.inputs) > 2 <= len(moving):
            return moving[:2]
        return [node.inputs[i] if i < len(node.inputs) else None for i in _PRODUCTS[node.op_type]]

    def _product(self, node: ir.Node, operands: list[ir.Value | None], body: str) -> None:
        left, right = operands
        if left is None or right is None:
            return
        if left in self.active and right in self.active:
            self._of_activations(node, (left, right), body)
        elif right in self.active and right.shape is not None and len(right.shape) > 2:
            self.scores[node.outputs[0]] = _Scores(asks_softmax=True)

    def _of_activations(
        self, node: ir.Node, operands: tuple[ir.Value, ir.Value], body: str, summed: bool = False
    ) -> None:
        consumed = self._consumed(*operands)
        if consumed is None or (summed and not consumed.softmax):
            self.scores[node.outputs[0]] = _Scores(asks_softmax=summed)
            return
        steps = tuple(step.lower() for step in consumed.steps)
        sighting = Sighting(module_path(node), "products", steps, consumed.returned)
        self.found.append((sighting, body))

    def _consumed(self, left: ir.Value, right: ir.Value) -> _Scores | None:
        """The scores whose life ends in this product: normalised ones on its left, or with a
        softmax on its right."""
        first, second = self.scores.get(left), self.scores.get(right)
        if first is not None and first.normalised:
            return first
        return second if second is not None and second.softmax else None
