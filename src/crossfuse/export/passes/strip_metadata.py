"""Keep the module path of every node, and drop the exporter's other notes.

PyTorch's exporter attaches stack traces with the paths of the user's files. Rules:

1. Each node keeps ``crossfuse.module`` (the path of its PyTorch module) and ``crossfuse.site``.
2. Inputs keep the range of the indices that they hold.
3. All other metadata and doc strings, of nodes, values, the graph and the model, are removed.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.metadata import COUNTS, MODULE, RANGE, SITE, module_path

__all__ = ["StripMetadataPass"]


class StripMetadataPass(FusionPass):
    """A graph that says no more about its origin than modules and sites."""

    def call(self, model: ir.Model) -> FusionResult:
        """Strip in place."""
        modified = False
        for node in model.graph.all_nodes():
            kept = {MODULE: module_path(node)}
            if SITE in node.metadata_props:
                kept[SITE] = node.metadata_props[SITE]
            modified |= _strip(node, kept)
            for value in node.outputs:
                modified |= _strip(value, {})
        for value in model.graph.inputs:
            props = value.metadata_props
            kept = {key: props[key] for key in (RANGE, COUNTS) if key in props}
            modified |= _strip(value, kept)
        for value in model.graph.initializers.values():
            modified |= _strip(value, {})
        modified |= _strip(model.graph, {}) | _strip(model, {})
        return FusionResult(model, modified)


def _strip(item: ir.Node | ir.Value | ir.Graph | ir.Model, kept: dict[str, str]) -> bool:
    changed = dict(item.metadata_props) != kept or bool(item.doc_string)
    item.metadata_props.clear()
    item.metadata_props.update(kept)
    item.doc_string = None
    return changed
