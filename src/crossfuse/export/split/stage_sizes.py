"""Sizes that a stage reads off values that it lacks, or has in another number: read off values that
it has, or computed from their sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from crossfuse.core.dimensions import fold, is_name, symbols_in
from crossfuse.errors import InputError
from crossfuse.export.split.dependence import READS_SIZES, shape_window
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dims_of

__all__ = ["MissingSizeError", "SizeReader", "read_sizes_off"]

_SIGNS: Mapping[str, str] = {"+": "Add", "-": "Sub", "*": "Mul", "Max": "Max", "Min": "Min"}
"""Operators of expressions that ONNX has."""


class MissingSizeError(InputError):
    """A stage reads a size that none of its values has."""

    def __init__(self, dim: int | str | None, where: str | None) -> None:
        super().__init__(
            "the graph can't be split: a size is read off a tensor that is in the other stage",
            where=where,
            got=dim,
            do="Export without context inputs",
        )
        self.dim = dim
        words = f"its size {dim} is read by the queries" if dim else "its size is not known"
        self.kept: Mapping[str, str] = {where or "": words}


@dataclass
class SizeReader:
    """Emits what ``Shape`` and ``Size`` nodes give, from sizes of other values.

    Attributes:
        present: values that may be read, inputs of the stage.
        counts: names that are read elsewhere, each off a value's axis.
        build: takes the nodes.
    """

    present: Sequence[ir.Value]
    counts: Mapping[str, tuple[ir.Value, int]] = field(default_factory=dict)
    build: GraphBuilder = field(default_factory=GraphBuilder)

    def like(self, node: ir.Node) -> ir.Value:
        """What a ``Shape`` or ``Size`` node gives.

        Raises:
            MissingSizeError: no value has a size, or it is not known.
        """
        source = node.inputs[0]
        if source is None or source.shape is None:
            raise MissingSizeError(None, node.name if source is None else source.name)
        parts = [self._size(dim, source.name) for dim in shape_window(node)]
        result = parts[0] if len(parts) == 1 else self.build.concat(*parts, self.build.ints())
        if node.op_type == "Size":
            result = self.build.op("ReduceProd", result, keepdims=0)
        return result

    def _size(self, dim: int | str | None, where: str | None) -> ir.Value:
        """One size, ``[1]`` int64."""
        if isinstance(dim, str) and not is_name(dim):
            known = None if symbols_in(dim) & self.counts.keys() else self._known(dim)
            computed = known or fold(dim, lambda part: self._leaf(part, where), self._join)
            if computed is not None:
                return computed
        return self._leaf(dim, where)

    def _leaf(self, dim: int | str | None, where: str | None) -> ir.Value:
        found = self.build.ints(dim) if isinstance(dim, int) else self._known(dim)
        if found is None:
            raise MissingSizeError(dim, where)
        return found

    def _known(self, dim: str | None) -> ir.Value | None:
        if dim is None:
            return None
        if dim in self.counts:
            return self.build.size(*self.counts[dim])
        for value in self.present:
            for axis, found in enumerate(dims_of(value) or ()):
                if found == dim:
                    return self.build.size(value, axis)
        return None

    def _join(self, sign: str, parts: Sequence[ir.Value]) -> ir.Value:
        op = self.build.op
        if len(parts) == 1:
            return op("Neg", parts[0]) if sign == "-" else parts[0]
        if sign in _SIGNS:
            return op(_SIGNS[sign], *parts)
        rest = op("Mod", *parts)
        if sign in ("%", "Mod"):
            return rest
        if sign in ("/", "//", "FloorDiv"):
            # ONNX divides towards zero.
            return op("Div", op("Sub", parts[0], rest), parts[1])
        raise MissingSizeError(sign, None)


def read_sizes_off(
    graph: ir.Graph, other: Collection[ir.Value], present: Sequence[ir.Value]
) -> None:
    """Let every ``Shape`` and ``Size`` of some values read the first of the values that has the
    size, or compute it from those.

    Args:
        graph: of a stage, changed in place.
        other: values whose sizes are not to be read.
        present: inputs of the stage.

    Raises:
        MissingSizeError: none of them has a size.
    """
    for node in list(graph):
        if node.op_type in READS_SIZES and node.inputs[0] in other:
            reader = SizeReader(present)
            reader.build.replace(node, reader.like(node))
