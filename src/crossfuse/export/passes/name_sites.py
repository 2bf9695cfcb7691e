"""Name every ``FusedAttention`` node after the PyTorch module it came from.

Rules:

1. The site is the module's path; the root module is ``(root)``.
2. Several attentions of one module (shared weights, or several calls) are told apart in order of
   execution by ``#2``, ``#3``.
3. The node's name becomes the site, so that profilers of every engine show it; the site also goes
   into the metadata.
4. Another node of that name gets another: engines refuse graphs that have a name twice.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.attention_node import attentions
from crossfuse.graph.metadata import SITE

__all__ = ["NameSitesPass", "site_name"]


class NameSitesPass(FusionPass):
    """Attention nodes named by their modules."""

    def call(self, model: ir.Model) -> FusionResult:
        """Name in place."""
        seen: Counter[str] = Counter()
        modified = False
        for attention in attentions(model.graph):
            path = attention.module
            seen[path] += 1
            site = site_name(path, seen[path])
            node = attention.node
            modified |= node.name != site or node.metadata_props.get(SITE) != site
            node.name = node.metadata_props[SITE] = site
        return FusionResult(model, _tell_apart(model.graph) or modified)

    def ensures(self, model: ir.Model) -> None:
        """No two attentions have one site."""
        sites = [attention.site for attention in attentions(model.graph)]
        assert len(set(sites)) == len(sites), sites


def _tell_apart(graph: ir.Graph) -> bool:
    """Rename nodes that are called as an attention is; whether there were any."""
    sites = {attention.site for attention in attentions(graph)}
    inner = [
        node
        for node in graph.all_nodes()
        if node.name in sites and node.metadata_props.get(SITE) != node.name
    ]
    taken = {node.name for node in graph.all_nodes()}
    for node in inner:
        name = f"{node.name}:{node.op_type}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
    return bool(inner)


def site_name(path: str, occurrence: int) -> str:
    """The site of a module's n-th attention, counted from 1."""
    return (path or "(root)") + (f"#{occurrence}" if occurrence > 1 else "")
