"""Self or cross? Decided by dataflow: do queries and keys spring from the same tokens?

Walk back from an operand to its *origins*: the model inputs and attention outputs it is made of,
through everything that works token by token. Rules:

1. An attention's output is an origin (the walk stops there): what it mixed in through its keys does
   not count as its own.
2. So is the product of two activations (an attention that was not captured).
3. Looking up an embedding follows the ids, adding a weight follows the other side; shapes,
   conditions and indices are not followed. A value made of weights alone (learned queries) has
   those weights as origins.
4. Truth values, and numbers made of them alone, say which tokens count and not what these are:
beside other content they are not followed. So queries that become 0 where a mask hides all keys
do not spring from what the mask was made of.

An attention is ``self`` where queries and keys share an origin, else ``cross``. Where keys are
projected from a concatenation of tokens, or projected and then concatenated, and one part shares
nothing with the queries (latents that attend to an image and to themselves, as in a resampler), it
is ``cross`` as well (`JoinedTokens`). In a decoder, self-attention
meets its own embeddings and earlier outputs on both sides, while cross-attention's keys come from
an encoder whose tokens never enter the decoder's residual stream. Which model inputs *reach* each
side, attentions included, is recorded next to it.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.joined_tokens import JoinedTokens
from crossfuse.graph.attention_node import AttentionNode, is_attention
from crossfuse.graph.op_classes import PRODUCT_OPS, SIZE_OPS

__all__ = ["Dataflow"]

_MADE_OF_SIZES = SIZE_OPS | {"ConstantOfShape", "Range", "EyeLike"}
_FIRST_ONLY = (
    frozenset({"Reshape", "Expand", "Slice", "Unsqueeze", "Squeeze", "Tile", "Pad", "Split"})
    | {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "TopK", "CumSum"}
    | {"Cast", "CastLike", "Clip", "Resize", "LayerNormalization", "InstanceNormalization"}
    | {"GroupNormalization", "BatchNormalization"}
)
"""Operators whose other operands say how, not what."""


_TRUTHS = frozenset(
    {*("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor")}
    | {"IsNaN", "IsInf"}
)
"""Operators that give truth values."""


class Dataflow:
    """Answers questions about where the operands of a model's attentions come from."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._origins: dict[ir.Value, frozenset[ir.Value]] = {}
        self._reach: dict[ir.Value, frozenset[str]] = {}
        self._truths = {v for v in model.graph.inputs if v.dtype == ir.DataType.BOOL}
        for value in model.graph.inputs:
            self._origins[value] = frozenset([value])
            self._reach[value] = frozenset([value.name or ""])
        for node in model.graph:
            origins, reach = self._node_origins(node), self._node_reach(node)
            for out in node.outputs:
                self._origins[out], self._reach[out] = origins or frozenset([out]), reach
            if self._gives_truths(node):
                self._truths.update(node.outputs)
        self._joined = JoinedTokens(model.graph, self._is_weight)

    def kind(self, attention: AttentionNode) -> str:
        """``self`` or ``cross``."""
        query, key, value = attention.query, attention.key, attention.value
        own = self.origins(query)
        if not own & (self.origins(key) | self.origins(value)):
            return "cross"
        parts = self._joined.parts(key)
        return "cross" if any(not own & self.origins(part) for part in parts) else "self"

    def reaching(self, *values: ir.Value | None) -> tuple[str, ...]:
        """Names of the model inputs that reach any of the values, in the model's order."""
        names = frozenset[str]().union(
            *(self._reach.get(v, frozenset()) for v in values if v is not None)
        )
        return tuple(i.name for i in self.graph.inputs if i.name in names)

    def origins(self, value: ir.Value | None) -> frozenset[ir.Value]:
        """Origins of a value; a weight is its own."""
        return frozenset() if value is None else self._origins.get(value, frozenset([value]))

    def _is_weight(self, value: ir.Value) -> bool:
        return not self._reach.get(value)

    def _node_reach(self, node: ir.Node) -> frozenset[str]:
        if node.op_type in _MADE_OF_SIZES:
            return frozenset()
        return frozenset[str]().union(
            *(self._reach.get(v, frozenset()) for v in node.inputs if v is not None)
        )

    def _node_origins(self, node: ir.Node) -> frozenset[ir.Value]:
        """Empty where the node's own output is the origin."""
        inputs = [v for v in node.inputs if v is not None]
        if is_attention(node) or node.op_type in _MADE_OF_SIZES or not inputs:
            return frozenset()
        if node.op_type in ("Gather", "GatherND", "GatherElements"):
            followed = inputs[1:2] if self._is_weight(inputs[0]) else inputs[:1]
        elif node.op_type == "Where":
            followed = inputs[1:]
        elif node.op_type in _FIRST_ONLY:
            followed = inputs[:1]
        else:
            followed = inputs
            active = [v for v in inputs if not self._is_weight(v)]
            if node.op_type in PRODUCT_OPS and len(active) > 1:
                return frozenset()
        active = [v for v in followed if not self._is_weight(v)]
        active = [v for v in active if v not in self._truths] or active
        if node.op_type == "Concat" or not active:
            active = followed
        return frozenset[ir.Value]().union(*(self.origins(v) for v in active))

    def _gives_truths(self, node: ir.Node) -> bool:
        """Truth values, or numbers made of these and weights alone."""
        if node.op_type in _TRUTHS or any(v.dtype == ir.DataType.BOOL for v in node.outputs):
            return True
        active = [v for v in node.inputs if v is not None and not self._is_weight(v)]
        return bool(active) and all(v in self._truths for v in active)
