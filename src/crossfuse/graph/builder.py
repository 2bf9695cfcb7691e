"""Emitting nodes: the one builder behind passes, layouts, expansions and lowerings.

Nodes gather on a tape and enter the graph together, in front of the node that they serve, as parts
of that node's module.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike
from onnx_ir.tape import Tape

from crossfuse.graph.metadata import inherited
from crossfuse.graph.shapes import dim_of

__all__ = ["GraphBuilder"]

Dims = Sequence[int | str | None] | ir.Shape


class GraphBuilder:
    """Emits nodes of one output each.

    Args:
        share: nodes that are equal in operator, inputs and attributes are emitted once, for the
            whole life of the builder. What it shares must be inserted where all users come behind.
    """

    def __init__(self, *, share: bool = False) -> None:
        self.share = share
        self.tape = Tape()
        self._made: dict[Hashable, ir.Value] = {}

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What was emitted and not inserted yet."""
        return self.tape.nodes

    def op(
        self,
        name: str,
        *inputs: ir.Value | None,
        domain: str = "",
        like: ir.Value | None = None,
        shape: Dims | None = None,
        **attributes: object,
    ) -> ir.Value:
        """Emit a node and give its output.

        Args:
            name: operator.
            inputs: operands; None for an optional one that is absent.
            domain: of the operator.
            like: a value whose type the output has.
            shape: of the output, where known.
            attributes: of the operator.
        """
        key = (name, domain, inputs, tuple(sorted((k, str(v)) for k, v in attributes.items())))
        if self.share and key in self._made:
            return self._made[key]
        made = self.own(name, *inputs, domain=domain, **attributes)
        if like is not None:
            made.type = like.type
        if shape is not None:
            made.shape = ir.Shape(shape)
        if self.share:
            self._made[key] = made
        return made

    def own(
        self, name: str, *inputs: ir.Value | None, domain: str = "", **attributes: object
    ) -> ir.Value:
        """Emit a node that is not shared, whatever equals it."""
        made: ir.Value = self.tape.op(
            name,
            list(inputs),
            attributes=attributes or None,  # type: ignore[arg-type]  # tape's type is not exported
            domain=domain,
        )
        return made

    def constant(self, values: ArrayLike, dtype: DTypeLike) -> ir.Value:
        """A small constant, with its type, shape and content known."""
        array = np.asarray(values, dtype=dtype)
        key = ("constant", array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if self.share and key in self._made:
            return self._made[key]
        tensor = ir.tensor(array)
        made: ir.Value = self.tape.op("Constant", [], attributes={"value": tensor})
        made.shape, made.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        made.const_value = tensor
        if self.share:
            self._made[key] = made
        return made

    def ints(self, *values: int) -> ir.Value:
        """A constant 1-D int64."""
        return self.constant(values, np.int64)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """One size of a value, ``[1]`` int64: a constant where it is known, else read at run time
        (where equal nodes are shared, once per named dimension)."""
        known = dim_of(value, axis)
        if isinstance(known, int):
            return self.ints(known)
        key = ("size", known)
        if self.share and known is not None and key in self._made:
            return self._made[key]
        made = self.op("Shape", value, start=axis, end=axis + 1)
        if self.share and known is not None:
            self._made[key] = made
        return made

    def concat(self, *parts: ir.Value) -> ir.Value:
        """Join 1-D values."""
        return self.op("Concat", *parts, axis=0)

    def positions(self, count: ir.Value) -> ir.Value:
        """``0 … count − 1`` in int64, of a ``[1]`` count."""
        start, step = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.op("Range", start, self.op("Squeeze", count), step)

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Parts of a value, of the given sizes along an axis."""
        made: Sequence[ir.Value] = self.tape.op_multi_out(
            "Split", [value, self.ints(*sizes)], {"axis": axis}, num_outputs=len(sizes)
        )
        return made

    def insert_before(self, node: ir.Node) -> None:
        """Insert what was emitted in front of a node, as parts of its module."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        passed_on = inherited(node)
        for new in self.tape.nodes:
            new.metadata_props.update({**passed_on, **new.metadata_props})
        graph.insert_before(node, self.tape.nodes)
        self.tape = Tape()

    def append_to(self, graph: ir.Graph) -> None:
        """Put what was emitted at the end of a graph."""
        graph.extend(self.tape.nodes)
        self.tape = Tape()

    def replace(self, node: ir.Node, result: ir.Value) -> None:
        """Insert what was emitted in a node's place, and remove the node.

        Args:
            node: whose first output is the only one in use.
            result: gets the uses of that output. Where it was emitted here it also gets the
                output's type and shape; where that is the graph's output, its name.
        """
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        old = node.outputs[0]
        is_output = old.is_graph_output()
        if is_output and (result.producer() is None or result.is_graph_output()):
            result = self.op("Identity", result)
        if result.producer() in self.tape.nodes:
            result.type = old.type if old.type is not None else result.type
            result.shape = old.shape if old.shape is not None else result.shape
            is_output = is_output or result.name is None
        self.insert_before(node)
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        if is_output:
            result.name = name
