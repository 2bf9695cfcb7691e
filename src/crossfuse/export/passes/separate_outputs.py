"""Give every output of the graph a value and a name of its own.

Rules:

1. A model that returns one tensor twice, or an input or weight as it is, gets an ``Identity`` for
   each further mention.
2. Outputs carry the names of the eager model's result, in its order.

It must not change the names of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import OutputFixPass

from crossfuse.export.passes.base import FusionPass, FusionResult

__all__ = ["SeparateOutputsPass"]


class SeparateOutputsPass(FusionPass):
    """Outputs that are distinct, and named.

    Args:
        names: of the outputs, in the graph's order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def call(self, model: ir.Model) -> FusionResult:
        """Separate and name in place."""
        before = [value.name for value in model.graph.outputs]
        inputs = {value: value.name for value in model.graph.inputs}
        result = OutputFixPass()(model)
        _copy_weights(model.graph, self.names)
        for value in model.graph.outputs:
            value.name = None
        for value, name in inputs.items():
            value.name = name  # onnx_ir gives an input that is an output another name
        for value, name in zip(model.graph.outputs, self.names, strict=True):
            value.name = name
        return FusionResult(model, result.modified or before != list(self.names))

    def ensures(self, model: ir.Model) -> None:
        """The outputs are distinct values, none of which is an input."""
        outputs = list(model.graph.outputs)
        assert len(set(outputs)) == len(outputs)
        assert not set(outputs) & set(model.graph.inputs)


def _copy_weights(graph: ir.Graph, names: Sequence[str]) -> None:
    """Outputs that are weights become copies of them; a weight that has an output's name, as the
    exporter gives it, gets another."""
    for i, value in enumerate(graph.outputs):
        if not value.is_initializer():
            continue
        node = ir.node("Identity", [value])
        copy = node.outputs[0]
        copy.type, copy.shape = value.type, value.shape
        graph.append(node)
        graph.outputs[i] = copy
        name = f"{value.name}"
        while name in names or (name != value.name and name in graph.initializers):
            name += "_"
        value.name = name
