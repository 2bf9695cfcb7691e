"""Name every ``FusedAttention`` node after the PyTorch module it came from.

Rules:

1. The site is the module's path; the root module is ``(root)``.
2. Several attentions of one module (shared weights, or several calls) are told apart in order of
execution by ``#2``, ``#3``.
3. The node's name becomes the site, so that profilers of every engine show it; the site also goes
into the metadata.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from crossfuse.export.capture.to_onnx import module_path
from crossfuse.graph.metadata import SITE, attention_nodes

__all__ = ["name_sites", "site_name"]


def site_name(path: str, occurrence: int) -> str:
    """The site of a module's n-th attention, counted from 1."""
    return (path or "(root)") + (f"#{occurrence}" if occurrence > 1 else "")


def name_sites(model: ir.Model) -> tuple[ir.Model, bool]:
    """Name all attention nodes; returns the model and whether there was any."""
    seen: Counter[str] = Counter()
    for node in attention_nodes(model.graph):
        path = module_path(node)
        seen[path] += 1
        node.name = site_name(path, seen[path])
        node.metadata_props[SITE] = node.name
    return model, bool(seen)
