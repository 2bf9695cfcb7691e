"""From the fused graph to the graphs of a bundle's stages, with their boundaries: ``model``, or ``context`` and ``query``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from crossfuse.bundle.manifest import StageSpec
from crossfuse.export.split import split
from crossfuse.flops import count_flops
from crossfuse.graphs import boundary
from crossfuse.specs import CONTEXTS, Dim

__all__ = ["Stages", "assemble"]


@dataclass(frozen=True)
class Stages:
    """Graphs and specs by stage, the dimensions of all of them, and the batch that queries don't share any more."""

    graphs: Mapping[str, ir.Model]
    specs: Mapping[str, StageSpec]
    dims: Mapping[str, Dim]
    shared_batch: str | None = None


def assemble(
    model: ir.Model, context: Sequence[str], dims: Mapping[str, Dim], sizes: Mapping[str, int], *, whole: bool = False
) -> Stages:
    """Split the graph where it has context inputs.

    Args:
        model: the fused graph.
        context: names of its context inputs.
        dims: its dimensions.
        sizes: their typical sizes.
        whole: leave it whole all the same.

    Raises:
        InputError: there is nothing to split.
    """
    if not context or whole:
        return Stages({"model": model}, {"model": _spec(model, sizes)}, dims)
    parts = split(model, context, sizes)
    if parts.shared is not None:
        shared = dims[parts.shared]
        dims = {**dims, CONTEXTS: replace(shared, name=CONTEXTS)}
        sizes = {**sizes, CONTEXTS: sizes[parts.shared]}
    graphs = {"context": parts.context, "query": parts.query}
    return Stages(graphs, {name: _spec(graph, sizes) for name, graph in graphs.items()}, dims, parts.shared)


def _spec(model: ir.Model, sizes: Mapping[str, int]) -> StageSpec:
    return StageSpec(boundary(model.graph.inputs), boundary(model.graph.outputs), count_flops(model, sizes))
