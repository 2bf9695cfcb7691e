"""Keep the module path of every node, and drop the exporter's other notes.

PyTorch's exporter attaches stack traces with the paths of the user's files. Rules:

1. Each node keeps ``crossfuse.module`` (the path of its PyTorch module) and ``crossfuse.site``.
2. Inputs keep the range of the indices that they hold.
3. All other metadata and doc strings, of nodes, values, the graph and the model, are removed.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.export.capture.to_onnx import module_path
from crossfuse.graph.metadata import MODULE, RANGE, SITE

__all__ = ["trim_metadata"]


def trim_metadata(model: ir.Model) -> tuple[ir.Model, bool]:
    """Trim in place; returns the model and True."""
    for node in model.graph.all_nodes():
        kept = {MODULE: module_path(node)}
        if SITE in node.metadata_props:
            kept[SITE] = node.metadata_props[SITE]
        _clear(node)
        node.metadata_props.update(kept)
        for value in node.outputs:
            _clear(value)
    for value in model.graph.inputs:
        kept = {RANGE: value.metadata_props[RANGE]} if RANGE in value.metadata_props else {}
        _clear(value)
        value.metadata_props.update(kept)
    for value in model.graph.initializers.values():
        _clear(value)
    model.graph.doc_string = model.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    return model, True


def _clear(item: ir.Node | ir.Value) -> None:
    item.metadata_props.clear()
    item.doc_string = None
