"""Sinks as the operator takes them: rows of zeros beside the keys and values, and columns beside
the terms of the scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from crossfuse.export.matching.axes import Axes, Axis, FactoredValue, size_of
from crossfuse.export.matching.axis_roles import AxisRoles
from crossfuse.export.matching.layout_builder import LayoutBuilder, known_dims, numpy_type
from crossfuse.export.matching.masks import PlacedTerm
from crossfuse.export.matching.sinks import Sink
from crossfuse.export.matching.terms import Term

__all__ = ["SinkRows"]


class SinkRows:
    """Writes a sink: rows of keys and values, and columns of terms.

    Args:
        sink: of the attention.
        roles: of its factors.
        layout: emits the nodes, and knows the sizes of the operands.
    """

    def __init__(self, sink: Sink, roles: AxisRoles, layout: LayoutBuilder) -> None:
        self.sink, self.roles, self.layout = sink, roles, layout

    def beside(self, operand: ir.Value) -> ir.Value:
        """``[contexts, keys, width]`` with rows of 0 for the sinks."""
        return self._joined(operand, self.sink.columns, 0, axis=1, first=self.sink.first)

    def knows(self, operand: ir.Value, axes: Axes) -> None:
        """The number of keys and sinks together may be read off this operand."""
        self.layout.knows(operand, [axes[0], self.sink.both, axes[2]])

    def terms(self, terms: tuple[Term, ...], like: ir.Value) -> list[PlacedTerm]:
        """The terms over keys and sinks, in order, the sinks' logits among them.

        Args:
            terms: of the attention.
            like: a value of the scores' type.
        """
        sink, layout = self.sink, self.layout
        placed = [PlacedTerm(term, layout, self.roles) for term in terms[: sink.before]]
        for place in placed:
            # What acts on the keys alone hides no sink, and adds nothing to it.
            neutral = 0 if place.term.fill is None else not place.term.hidden
            place.extend(self._joined(place.value, sink.columns, neutral, axis=3, first=sink.first))
        logits = PlacedTerm(self._logits(like), layout, replace(self.roles, keys=sink.columns))
        logits.extend(self._joined(logits.value, self.roles.keys, 0, axis=3, first=not sink.first))
        over_both = replace(self.roles, keys=sink.both)
        later = [PlacedTerm(term, layout, over_both) for term in terms[sink.before :]]
        return [*placed, logits, *later]

    def _logits(self, like: ir.Value) -> Term:
        if self.sink.terms:
            return self.sink.terms[0]
        logits = np.full([1] * 4, self.sink.logits)
        number = self.layout.constant(logits, numpy_type(like))
        return Term(FactoredValue(number, ((), (), (), ())), self.sink.factor)

    def _joined(
        self, value: ir.Value, added: Axis, number: float, *, axis: int, first: bool
    ) -> ir.Value:
        """The value, and as much more along an axis that holds one number."""
        layout, dims = self.layout, known_dims(value)
        # Each size is read off the value itself: a context's is then known without the queries.
        sizes = [layout.build.size(value, place) for place in range(len(dims))]
        sizes[axis] = layout.sizes([added])
        shape = layout.op("Concat", sizes, sizes[axis], [len(dims)], axis=0)
        one = layout.constant(np.full([1] * len(dims), number), numpy_type(value))
        part_dims = [*dims[:axis], size_of(added).dim, *dims[axis + 1 :]]
        part = layout.op("Expand", [one, shape], value, part_dims)
        dims[axis] = size_of(self.sink.both).dim
        return layout.op(
            "Concat", [part, value] if first else [value, part], value, dims, axis=axis
        )
