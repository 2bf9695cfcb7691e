"""What of a graph depends on context inputs alone, and what on queries: the ground that a split
stands on.

Dependence is of content: reading a tensor's size is not reading it. What reads sizes and weights
alone is *neutral*, and may be computed in either stage, where the sizes it reads are known.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

import onnx_ir as ir

from crossfuse.core.dimensions import symbols_in
from crossfuse.graph.shapes import dim_of

__all__ = [
    "READS_SIZES",
    "Content",
    "Dependence",
    "queries_behind",
    "shape_symbols",
    "shape_window",
    "sizes_read",
]

READS_SIZES = frozenset({"Shape", "Size"})
"""Operators that read sizes alone."""


class Content(enum.Flag):
    """Whose content a value depends on."""

    NEUTRAL = 0
    CONTEXT = enum.auto()
    QUERY = enum.auto()


class Dependence:
    """Content of every value, and the named sizes that its computation reads.

    Args:
        graph: the whole graph.
        context: names of the inputs that change rarely.
        whole: values that must not be computed apart from the queries.
    """

    def __init__(
        self, graph: ir.Graph, context: Collection[str], whole: Collection[ir.Value] = ()
    ) -> None:
        self.content: dict[ir.Value, Content] = {}
        self.sizes_of_context = frozenset[str]()
        for value in graph.inputs:
            self.content[value] = Content.CONTEXT if value.name in context else Content.QUERY
            if value.name in context:
                self.sizes_of_context |= shape_symbols(value)
        self.needs = sizes_read(graph)
        for node in graph:
            content = self._of_node(node)
            for out in node.outputs:
                self.content[out] = content | Content.QUERY if out in whole else content

    def of(self, value: ir.Value | None) -> Content:
        """Content of a value; a weight is neutral."""
        return Content.NEUTRAL if value is None else self.content.get(value, Content.NEUTRAL)

    def early(self, value: ir.Value) -> bool:
        """Depends on the context alone, and can be computed before any query is there."""
        known = self.sizes_of_context
        return (
            self.of(value) == Content.CONTEXT
            and self.needs.get(value, frozenset()) <= known
            and all(symbols_in(size) <= known for size in _dims(value))
        )

    def add(self, node: ir.Node) -> None:
        """Take in a node that was put into the graph behind all that it is made of."""
        self.content.update(dict.fromkeys(node.outputs, self._of_node(node)))
        self.needs.update(dict.fromkeys(node.outputs, _read_by(node, self.needs)))

    def _of_node(self, node: ir.Node) -> Content:
        content = Content.NEUTRAL
        if node.op_type not in READS_SIZES:
            for value in node.inputs:
                content |= self.of(value)
        return content


def queries_behind(value: ir.Value, dependence: Dependence) -> set[str]:
    """Names of the queries' inputs whose content a value depends on, itself among them."""
    found, seen, pending = set[str](), set[ir.Value](), [value]
    while pending:
        current = pending.pop()
        if current in seen or Content.QUERY not in dependence.of(current):
            continue
        seen.add(current)
        producer = current.producer()
        if producer is None:
            found.add(current.name or "an input")
        else:
            pending += [v for v in producer.inputs if v is not None]
    return found


def sizes_read(graph: ir.Graph) -> dict[ir.Value, frozenset[str]]:
    """The named sizes that the computation of every value reads."""
    found: dict[ir.Value, frozenset[str]] = {}
    for node in graph:
        found.update(dict.fromkeys(node.outputs, _read_by(node, found)))
    return found


def _read_by(node: ir.Node, found: Mapping[ir.Value, frozenset[str]]) -> frozenset[str]:
    """The named sizes that a node's results read, given those of its operands."""
    needs = frozenset[str]()
    if node.op_type in READS_SIZES:
        return needs.union(*(symbols_in(size) for size in shape_window(node)))
    return needs.union(*(found.get(v, needs) for v in node.inputs if v is not None))


def shape_symbols(value: ir.Value) -> frozenset[str]:
    """Names in a value's shape."""
    return frozenset().union(*(symbols_in(size) for size in _dims(value)))


def shape_window(node: ir.Node) -> list[int | str | None]:
    """The sizes that a ``Shape`` node reads."""
    value = node.inputs[0]
    dims = _dims(value) if value is not None else []
    start, end = node.attributes.get_int("start", 0) or 0, node.attributes.get_int("end", None)
    return dims[start:end] if node.op_type == "Shape" else dims


def _dims(value: ir.Value) -> list[int | str | None]:
    return (
        [dim_of(value, axis) for axis in range(len(value.shape))] if value.shape is not None else []
    )
