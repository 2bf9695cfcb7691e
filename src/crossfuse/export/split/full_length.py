"""`FullLength`: what depends on the number of tokens, computed for as many as a decoding state has
room for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from crossfuse.core.dimensions import size_at, symbols_in
from crossfuse.export.split.dependence import shape_symbols, shape_window
from crossfuse.graph.shapes import dim_of

__all__ = ["FullLength"]


class FullLength:
    """Copies of a graph's nodes where there are ``length`` tokens, made as they are asked for.

    Args:
        graph: that they enter.
        axis: the dimension that counts the tokens.
        length: in its place.
        moving: values that depend on the tokens' content: they stay as they are.
        needs: of other values, whether their computation reads the number of tokens, or what is
            beside them.
        refusal: the error for a size that is merged with the token axis.

    Attributes:
        values: what was computed, by what it stands for.
    """

    def __init__(
        self,
        graph: ir.Graph,
        axis: str,
        length: int,
        moving: Collection[ir.Value],
        needs: Mapping[ir.Value, bool],
        refusal: Callable[[str, object], Exception],
    ) -> None:
        self.graph, self.axis, self.length = graph, axis, length
        self.moving, self.needs, self.refusal = moving, needs, refusal
        self.values: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The value at full length, computed in front of a node; itself where that makes no
        difference."""
        if value in self.values or value in self.moving:
            return self.values.get(value, value)
        node = value.producer()
        if node is None or not (self.needs.get(value, False) or self.axis in shape_symbols(value)):
            return value
        if node.op_type == "Shape":
            return self._sizes(node, before)
        inputs = [v if v is None else self.of(v, before) for v in node.inputs]
        attributes, count = list(node.attributes.values()), len(node.outputs)
        copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=count)
        copy.metadata_props.update(node.metadata_props)
        self.graph.insert_before(before, copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type = old.type
            if old.shape is not None:
                dims = (dim_of(old, axis) for axis in range(len(old.shape)))
                new.shape = ir.Shape([self.long(dim) for dim in dims])
            self.values[old] = new
        return self.values[value]

    def long(self, dim: int | str | None) -> int | str | None:
        """A size at full length; None where it isn't known."""
        return self.at_length(dim) if self.axis in symbols_in(dim) else dim

    def at_length(self, dim: int | str | None) -> int | None:
        """A size of the number of tokens alone, where there are as many as the state has room
        for."""
        return size_at(dim, {self.axis: self.length})

    def _sizes(self, node: ir.Node, before: ir.Node) -> ir.Value:
        """What a ``Shape`` reads where the sequence has the state's whole length."""
        value, tape = node.outputs[0], Tape()
        window = enumerate(shape_window(node))
        parts = [self._size(tape, dim, node, index) for index, dim in window]
        made = parts[0] if len(parts) == 1 else tape.op("Concat", parts, attributes={"axis": 0})
        made.shape, made.type = value.shape, value.type
        self.graph.insert_before(before, tape.nodes)
        self.values[value] = made
        return made

    def _size(self, tape: Tape, dim: int | str | None, node: ir.Node, index: int) -> ir.Value:
        at_length = self.at_length(dim) if self.axis in symbols_in(dim) else None
        if at_length is not None:
            value = ir.tensor(np.array([at_length], np.int64))
            made: ir.Value = tape.op("Constant", [], attributes={"value": value})
            return made
        if self.axis in symbols_in(dim):
            raise self.refusal("a size is merged with the token axis", dim)
        start = (node.attributes.get_int("start", 0) or 0) + index
        return tape.op("Shape", list(node.inputs), attributes={"start": start, "end": start + 1})
