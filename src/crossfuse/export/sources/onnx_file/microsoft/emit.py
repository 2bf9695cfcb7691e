"""What the expansions are written with: nodes on a tape, and the operator that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from crossfuse.graph.builder import GraphBuilder

__all__ = ["DOMAIN", "Expansion", "NotYetError", "Operator", "UntakenError"]

DOMAIN = "com.microsoft"


class UntakenError(Exception):
    """Why an operator can't be taken in."""


class NotYetError(Exception):
    """A rank or size that an expansion needs is not known (yet)."""


class Operator(GraphBuilder):
    """A node that is being expanded, and the builder that its expansion goes to."""

    def __init__(self, node: ir.Node) -> None:
        super().__init__()
        self.node = node

    def given(self, index: int) -> ir.Value | None:
        """An optional input."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def needed(self, index: int) -> ir.Value:
        """An input that the operator can't do without."""
        value = self.given(index)
        if value is None:
            raise UntakenError(f"its input {index} is missing")
        return value

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        value = self.node.attributes.get_float(name, default)
        assert value is not None
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        value = self.node.attributes.get_int(name, default)
        assert value is not None
        return value

    def text(self, name: str, default: str = "") -> str:
        """A text attribute."""
        value = self.node.attributes.get_string(name, default)
        assert value is not None
        return value

    def used(self, index: int) -> bool:
        """An output that something uses."""
        outputs = self.node.outputs
        return index < len(outputs) and bool(
            outputs[index].uses() or outputs[index].is_graph_output()
        )

    def refuse_outputs(self, first: int, *, but: Sequence[int] = ()) -> None:
        """Raise where an output from ``first`` on is used."""
        for index in range(first, len(self.node.outputs)):
            if index not in but and self.used(index):
                raise UntakenError(f"its output {index} is used")

    def float(self, value: float) -> ir.Value:
        """A float32 number."""
        return self.constant(value, np.float32)

    def rank(self, value: ir.Value) -> int:
        """Number of axes."""
        if value.shape is None:
            raise NotYetError
        return len(value.shape)

    def static_size(self, value: ir.Value, axis: int) -> int:
        """A size that must be known."""
        self.rank(value)
        assert value.shape is not None
        size = value.shape[axis]
        if not isinstance(size, int):
            raise NotYetError
        return size


Expansion = Callable[[Operator], "list[ir.Value | None]"]
"""Emits what an operator means; gives a value for each of its outputs, None for those that can't be
used."""
