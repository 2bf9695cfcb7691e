"""Leave out outputs that nobody wants, and give every other one of the graph a value and a name of
its own.

Rules:

1. A model that returns one tensor twice, or an input as it is, gets an ``Identity`` for each
further mention.
2. Outputs carry the names of the eager model's result, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import OutputFixPass, RemoveUnusedNodesPass

__all__ = ["drop_outputs", "separate_outputs"]


def drop_outputs(
    model: ir.Model, names: Sequence[str], kept: Sequence[str]
) -> tuple[ir.Model, bool]:
    """Leave out outputs, and what computes nothing else; returns the model and whether it
    changed."""
    if len(names) == len(kept):
        return model, False
    values = [value for name, value in zip(names, model.graph.outputs, strict=True) if name in kept]
    model.graph.outputs[:] = values
    RemoveUnusedNodesPass()(model)
    return model, True


def separate_outputs(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, bool]:
    """Separate and name the outputs; returns the model and whether it changed."""
    before = [value.name for value in model.graph.outputs]
    result = OutputFixPass()(model)
    for value in model.graph.outputs:
        value.name = None
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name
    return result.model, result.modified or before != list(names)
