"""Give every output of the graph a value and a name of its own.

Rules:

1. A model that returns one tensor twice, or an input as it is, gets an ``Identity`` for each further mention.
2. Outputs carry the names of the eager model's result, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import OutputFixPass

__all__ = ["separate_outputs"]


def separate_outputs(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, bool]:
    """Separate and name the outputs; returns the model and whether it changed."""
    before = [value.name for value in model.graph.outputs]
    result = OutputFixPass()(model)
    for value in model.graph.outputs:
        value.name = None
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name
    return result.model, result.modified or before != list(names)
