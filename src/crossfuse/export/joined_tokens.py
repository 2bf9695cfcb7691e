"""What keys were put together from: the parts of a concatenation along the tokens.

Keys are followed back through everything that works token by token, up to a ``Concat`` along the
axis that became their own. Its parts count where a projection lies behind them (keys of a
concatenation), or within each of them (a concatenation of keys); a part without one is a cache.
Parts made of weights alone (registers, prefixes) belong to whoever attends to them.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from crossfuse.graph.attention_node import is_attention
from crossfuse.graph.op_classes import LAYOUT_OPS, PRODUCT_OPS, is_onnx
from crossfuse.graph.shapes import dim_of, rank_of, same_dim

__all__ = ["JoinedTokens"]

_MOVES = LAYOUT_OPS | {"Cast", "Identity", "Expand", "Slice", "Split", "Gather", "Tile"}
"""Operators whose first operand is what they move."""

_TOKENWISE = (
    PRODUCT_OPS
    | {"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "ReduceMean", "Concat"}
    | {"LayerNormalization", "RMSNormalization", "Gelu", "Erf", "Tanh", "Sigmoid", "Relu"}
)

IsWeight = Callable[[ir.Value], bool]


class JoinedTokens:
    """What lies behind the values of a graph, read once from its inputs on.

    Args:
        graph: whose nodes are in order.
        is_weight: whether a value is made of weights and sizes alone.
    """

    def __init__(self, graph: ir.Graph, is_weight: IsWeight) -> None:
        self._is_weight = is_weight
        self._joins: dict[ir.Value, frozenset[tuple[ir.Node, bool]]] = {}
        self._projected: set[ir.Value] = set()
        for node in graph:
            behind = _behind(node, is_weight)
            if behind:
                self._follow(node, behind)

    def parts(self, key: ir.Value) -> list[ir.Value]:
        """The values that keys ``[Bk, S, Hkv·D]`` were joined from, none where they were not."""
        found: list[ir.Value] = []
        for join, projected in self._joins.get(key, ()):
            if _along_tokens(join, key):
                active = [v for v in join.inputs if v is not None and not self._is_weight(v)]
                found += [v for v in active if projected or v in self._projected]
        return found

    def _follow(self, node: ir.Node, behind: list[ir.Value]) -> None:
        projects = _is_projection(node, self._is_weight)
        joins = frozenset[tuple[ir.Node, bool]]().union(
            *(self._joins.get(value, ()) for value in behind)
        )
        if projects:
            joins = frozenset((join, True) for join, _ in joins)
        if is_onnx(node, "Concat") and not _along_features(node):
            joins = frozenset([(node, False)])
        if joins:
            self._joins.update(dict.fromkeys(node.outputs, joins))
        if projects or any(value in self._projected for value in behind):
            self._projected.update(node.outputs)


def _along_features(join: ir.Node) -> bool:
    rank = rank_of(join.outputs[0])
    axis = join.attributes["axis"].as_int()
    return axis == -1 or (rank is not None and axis == rank - 1)


def _along_tokens(join: ir.Node, key: ir.Value) -> bool:
    out = join.outputs[0]
    rank = rank_of(out)
    if rank is None or rank < 2:
        return False
    axis = join.attributes["axis"].as_int() % rank
    size, tokens = dim_of(out, axis), dim_of(key, 1)
    if size is None or tokens is None:
        return rank == 3 and axis == 1
    return axis != rank - 1 and same_dim(size, tokens)


def _is_projection(node: ir.Node, is_weight: IsWeight) -> bool:
    return is_onnx(node, *PRODUCT_OPS) and any(is_weight(v) for v in node.inputs if v is not None)


def _behind(node: ir.Node, is_weight: IsWeight) -> list[ir.Value]:
    """The values that a node makes its tokens of, one by one; none where it mixes them."""
    if is_attention(node):
        return []
    if is_onnx(node, *_MOVES):
        found = list(node.inputs[:1])
    elif is_onnx(node, *_TOKENWISE):
        found = list(node.inputs)
    else:
        return []
    active = [v for v in found if v is not None and not is_weight(v)]
    # A product of two activations mixes tokens.
    return [] if is_onnx(node, *PRODUCT_OPS) and len(active) > 1 else active
