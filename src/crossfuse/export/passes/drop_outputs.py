"""Leave out outputs that nobody wants, and what computes nothing else.

Rules:

1. Outputs that are not kept go, with every operator that only they need.

It must not change the order or the names of those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.passes.base import FusionPass, FusionResult

__all__ = ["DropOutputsPass"]


class DropOutputsPass(FusionPass):
    """The graph with fewer outputs.

    Args:
        names: of all outputs, in the graph's order.
        kept: those that stay.
    """

    def __init__(self, names: Sequence[str], kept: Sequence[str]) -> None:
        self.names, self.kept = names, kept

    def call(self, model: ir.Model) -> FusionResult:
        """Drop in place."""
        if len(self.names) == len(self.kept):
            return FusionResult(model, False)
        outputs = zip(self.names, model.graph.outputs, strict=True)
        model.graph.outputs[:] = [value for name, value in outputs if name in self.kept]
        RemoveUnusedNodesPass()(model)
        return FusionResult(model, True)
