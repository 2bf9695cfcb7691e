"""The census of an ONNX file: its attentions counted by what flows from product to product, without the passes.

The same definition as in `census`, on nodes instead of operators that run: an attention is a product of two activations whose
result goes through something that is not linear along the way to a second product with an activation; or a node that is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from crossfuse.export.census import Sighting
from crossfuse.export.translate import module_path

__all__ = ["graph_census"]

_PRODUCTS = {"MatMul", "Gemm", "Einsum"}
_NODES = {"Attention", "MultiHeadAttention", "GroupQueryAttention", "FusedAttention"}
_LINEAR = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity", "Cast", "Slice", "Split", "Concat",
    "Gather", "Mul", "Div", "Add", "Sub", "Where", "Neg", "Dropout", "Tile", "Pad",
}  # fmt: skip
_SHAPES = {"Shape", "Size"}


@dataclass
class _Scores:
    steps: list[str] = field(default_factory=list)
    returned: bool = False

    @property
    def normalised(self) -> bool:
        return any(step not in _LINEAR for step in self.steps)


def graph_census(model: ir.Model) -> list[Sighting]:
    """Attentions in the graph's order."""
    active = set(model.graph.inputs)
    scores: dict[ir.Value, _Scores] = {}
    found: list[Sighting] = []
    for node in model.graph:
        inputs = [v for v in node.inputs if v is not None]
        flowing = [v for v in inputs if v in active]
        if not flowing or node.op_type in _SHAPES:
            continue
        active.update(node.outputs)
        if node.op_type in _NODES:
            found.append(Sighting(module_path(node), "sdpa"))
        elif node.op_type in _PRODUCTS and len(flowing) > 1:
            consumed = _consumed(inputs, scores)
            if consumed is not None:
                steps = tuple(step.lower() for step in consumed.steps)
                found.append(Sighting(module_path(node), "products", steps, consumed.returned))
            else:
                scores[node.outputs[0]] = _Scores()
        elif node.op_type not in _PRODUCTS:
            source = next((scores[v] for v in inputs if v in scores), None)
            if source is not None:
                source.steps.append(node.op_type)
                source.returned |= source.normalised and any(v.is_graph_output() for v in node.outputs)
                scores.update(dict.fromkeys(node.outputs, source))
    return found


def _consumed(inputs: list[ir.Value], scores: dict[ir.Value, _Scores]) -> _Scores | None:
    """The scores whose life ends in this product: normalised ones on its left, or with a softmax on its right."""
    left, right = (scores.get(v) for v in inputs[:2])
    if left is not None and left.normalised:
        return left
    return right if right is not None and "Softmax" in right.steps else None
