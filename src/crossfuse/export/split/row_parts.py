"""The first rows of a value along an axis, or the rest of them, computed apart.

Rules, of a value whose rows are asked for:

1. Where it was cut before, its part is known. What depends on the context alone and needs no size
   of the queries is sliced.
2. Else the node that makes it is made again of the same rows of its operands (`token_axes`): a
   range from its start on, a lower triangle of the rows that it has, a sum over the rows so far.
3. The rest of a value may be sliced off the whole one. The first rows may not: they must not wait
   for any query. Where they depend on one, they can't be told apart, and the reason names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from crossfuse.core.dimensions import symbols_in
from crossfuse.export.split.dependence import Content, Dependence, queries_behind
from crossfuse.export.split.rows import CannotCutError, Cut, Rows, Side
from crossfuse.export.split.token_axes import integers, operand_axes
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.metadata import inherited
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, dims_of, rank_of

__all__ = ["Asked", "RowParts", "RowRule", "element", "why_not"]

_END = 2**31 - 1
"""Slices that end there or behind end with their axis."""


@dataclass(frozen=True)
class Asked:
    """Rows of a node's result that are asked for."""

    node: ir.Node
    axis: int
    rows: Rows
    side: Side


@dataclass
class RowParts:
    """Parts of a graph's values; what they need is put at the graph's end, in no order.

    Attributes:
        graph: takes the nodes.
        dependence: of its values before any was cut.
        rules: of operators that `token_axes` has no place by place rule for.
        cuts: values that are there in two parts.
        joined: those again as one.
        made: parts by value, axis, number of the first rows, and side.
    """

    graph: ir.Graph
    dependence: Dependence
    rules: Mapping[str, RowRule]
    cuts: dict[ir.Value, Cut] = field(default_factory=dict)
    joined: dict[ir.Value, ir.Value] = field(default_factory=dict)
    made: dict[tuple[ir.Value, int, str, Side], ir.Value] = field(default_factory=dict)

    def part(self, value: ir.Value, axis: int, rows: Rows, side: Side) -> ir.Value:
        """Rows of a value.

        Raises:
            CannotCutError: the first ones can't be computed from the context alone.
        """
        cut = self.cuts.get(value)
        if cut is not None and cut.axis == axis and cut.rows.like(rows):
            return cut.part(side)
        key = (value, axis, str(rows.dim(Side.FIRST)), side)
        if key not in self.made:
            if self.is_early(value):
                self.made[key] = self._sliced(value, axis, rows, side)
            else:
                self._make(value, axis, rows, side)
        return self.made[key]

    def whole(self, value: ir.Value) -> ir.Value:
        """The two parts of a value that was cut, as one again."""
        if value not in self.joined:
            cut, build = self.cuts[value], GraphBuilder()
            shape = dims_of(value)
            made = build.op("Concat", cut.first, cut.rest, axis=cut.axis, like=value, shape=shape)
            self.put(build, value.producer())
            self.joined[value] = made
        return self.joined[value]

    def is_early(self, value: ir.Value) -> bool:
        """It can be computed before any query is there."""
        known = self.dependence.sizes_of_context
        sizes = frozenset().union(*(symbols_in(dim) for dim in dims_of(value) or ()))
        return (
            Content.QUERY not in self.dependence.of(value)
            and self.dependence.needs.get(value, frozenset()) <= known
            and sizes <= known
        )

    @property
    def early_inputs(self) -> list[ir.Value]:
        """Inputs of the context."""
        return [v for v in self.graph.inputs if self.dependence.of(v) == Content.CONTEXT]

    def require_early(self, value: ir.Value) -> None:
        """Refuse rows that must wait for queries.

        Raises:
            CannotCutError: naming what of the queries they need.
        """
        if not self.is_early(value):
            needs = self.dependence.needs.get(value, frozenset())
            sizes = sorted(needs - self.dependence.sizes_of_context)
            inputs = sorted(queries_behind(value, self.dependence))
            what = ", ".join(inputs or [f"the size {size}" for size in sizes] or ["a size"])
            raise CannotCutError(f"they are computed with {what} of the queries")

    def put(self, build: GraphBuilder, like: ir.Node | None = None) -> None:
        """Put nodes into the graph, as parts of a node's module."""
        for node in build.nodes if like is not None else ():
            node.metadata_props.update(inherited(like) if like is not None else {})
        self._note(build.nodes)
        build.append_to(self.graph)

    def _note(self, nodes: Iterable[ir.Node]) -> None:
        """What new values depend on."""
        for node in nodes:
            self.dependence.add(node)

    def _make(self, value: ir.Value, axis: int, rows: Rows, side: Side) -> None:
        node = value.producer()
        made = None
        try:
            if node is not None:
                made = self._made_again(node, axis, rows, side)
        except CannotCutError:
            if side is Side.FIRST:
                raise
        if made is None:
            if side is Side.FIRST:
                raise CannotCutError(why_not(value, node))
            made = {value: self._sliced(value, axis, rows, side)}
        for old, new in made.items():
            self.made[old, axis, str(rows.dim(Side.FIRST)), side] = new

    def _made_again(
        self, node: ir.Node, axis: int, rows: Rows, side: Side
    ) -> Mapping[ir.Value, ir.Value] | None:
        rule = self.rules.get(node.op_type) if is_onnx(node) else None
        if rule is not None:
            made = rule(self, Asked(node, axis, rows, side))
            if made is not None:
                return {node.outputs[0]: made}
        axes = operand_axes(node, axis)
        if axes is None or all(own is None for own in axes):
            return None
        shape = node.inputs[1] if is_onnx(node, "Reshape", "Expand") else None
        inputs = [
            v if own is None or v is None else self.part(v, own, rows, side)
            for v, own in zip(node.inputs, axes, strict=True)
        ]
        if shape is not None:
            inputs[1] = self._target(node, axis, rows, side, inputs[0])
        return self.again(node, inputs, axis, rows.dim(side))

    def again(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], axis: int, dim: int | str | None
    ) -> Mapping[ir.Value, ir.Value]:
        """The node on other operands, its results with another size along an axis; result → new
        result."""
        attributes = list(node.attributes.values())
        count = len(node.outputs)
        copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=count)
        copy.metadata_props.update(node.metadata_props)
        self.graph.append(copy)
        self._note([copy])
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type = old.type
            dims = dims_of(old)
            if dims is not None:
                new.shape = ir.Shape([*dims[:axis], dim, *dims[axis + 1 :]])
        return dict(zip(node.outputs, copy.outputs, strict=True))

    def _sliced(self, value: ir.Value, axis: int, rows: Rows, side: Side) -> ir.Value:
        build = GraphBuilder()
        count = rows.count(build, Side.FIRST)
        bounds = (build.ints(0), count) if side is Side.FIRST else (count, build.ints(_END))
        return self.sliced_at(build, value, bounds, axis, rows.dim(side))

    def sliced_at(
        self,
        build: GraphBuilder,
        value: ir.Value,
        bounds: tuple[ir.Value, ir.Value],
        axis: int,
        dim: int | str | None,
    ) -> ir.Value:
        """A value from one place of an axis to another (``[1]`` each), ``dim`` of them."""
        dims = dims_of(value)
        shape = None if dims is None else [*dims[:axis], dim, *dims[axis + 1 :]]
        made = build.op("Slice", value, *bounds, build.ints(axis), like=value, shape=shape)
        self.put(build, value.producer())
        return made

    def _target(
        self, node: ir.Node, axis: int, rows: Rows, side: Side, source: ir.Value | None
    ) -> ir.Value:
        """The shape that a ``Reshape`` or ``Expand`` is to give to rows of its operand.

        Raises:
            CannotCutError: a size of it isn't known.
        """
        build = GraphBuilder()
        sizes, open_size = [], node.op_type == "Reshape"
        for place, dim in enumerate(dims_of(node.outputs[0]) or ()):
            if place == axis:
                sizes.append(rows.count(build, side))
            elif isinstance(dim, int):
                sizes.append(build.ints(dim))
            elif dim is not None and dim in (dims_of(source) or ()):
                assert source is not None
                sizes.append(build.size(source, (dims_of(source) or []).index(dim)))
            elif open_size:
                sizes.append(build.ints(-1))
                open_size = False
            else:
                sizes.append(element(build, node.inputs[1], place, self.early_inputs))
        target = build.concat(*sizes)
        self.put(build, node)
        return target


RowRule = Callable[[RowParts, Asked], ir.Value | None]
"""Rows of an operator's result; None where the rule doesn't hold for what is asked."""


def element(
    build: GraphBuilder, shape: ir.Value | None, place: int, inputs: Iterable[ir.Value] = ()
) -> ir.Value:
    """One number of a shape, ``[1]``, without the others where it is joined from them.

    Args:
        build: takes the nodes.
        shape: sizes, ``[rank]``.
        place: of the number.
        inputs: that have a size of the same name, rather than what the shape is read off.

    Raises:
        CannotCutError: there is no shape.
    """
    producer = shape.producer() if shape is not None else None
    numbers = integers(shape)
    if numbers is not None:
        return build.ints(numbers[place])
    if producer is not None and is_onnx(producer, "Concat"):
        operands = [v for v in producer.inputs if v is not None]
        if all(rank_of(v) == 1 and dim_of(v, 0) == 1 for v in operands):
            return operands[place]
    if producer is not None and is_onnx(producer, "Shape") and producer.inputs[0] is not None:
        source, start = producer.inputs[0], producer.attributes.get_int("start", 0) or 0
        axis = start % max(1, rank_of(source) or 1) + place
        dim = dim_of(source, axis)
        alike = ((v, (dims_of(v) or []).index(dim)) for v in inputs if dim in (dims_of(v) or ()))
        return build.size(*next(alike, (source, axis)))
    if shape is None:
        raise CannotCutError("a size isn't known")
    return build.op("Gather", shape, build.ints(place), axis=0)


def why_not(value: ir.Value, node: ir.Node | None) -> str:
    """Why the first rows of a value can't be told apart."""
    if node is None:
        return f"the input {value.name} of the queries holds something for each of its tokens, too"
    return f"they can't be followed through {node.op_type} ({value.name})"
