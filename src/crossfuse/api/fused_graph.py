"""The fused graph that a bundle holds, with the stages that it was split into: what targets are
built from, and checked again on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.bundle.store import Bundle
    from crossfuse.export.split.assembly import Stages

__all__ = ["FUSED_GRAPH", "WEIGHTS", "FusedStages", "fused_stages"]

FUSED_GRAPH = "fused.onnx"
"""The file of the fused graph."""

WEIGHTS = "weights.bin"
"""The file of the fused graph's weights, which the targets' graphs share."""


class FusedStages(NamedTuple):
    """The whole fused graph, in fp32, and its stages."""

    model: ir.Model
    stages: Stages


def fused_stages(bundle: Bundle) -> FusedStages:
    """A bundle's fused graph, and the stages that it was split into.

    Raises:
        BundleError: a damaged file.
    """
    from crossfuse.export.split.assembly import assemble
    from crossfuse.targets.graph_files import load_graph

    manifest = bundle.manifest
    bundle.verified({manifest.fused_graph, WEIGHTS} & set(manifest.files))
    model = load_graph(bundle, manifest.fused_graph)
    decode = None if manifest.decode is None else manifest.decode.tokens
    whole = "model" in manifest.stages
    stages = assemble(
        model,
        manifest.context,
        manifest.dims,
        manifest.example,
        whole=whole,
        decode=decode,
        prefix=manifest.prefix is not None and bool(manifest.prefix.attentions),
    )
    return FusedStages(model, stages)
