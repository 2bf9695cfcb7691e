"""The fused graph that a bundle holds, with the stages that it was split into: what targets are
built from, and checked again on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crossfuse.errors import BundleError

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
        BundleError: a damaged file, or a step stage of an older version.
    """
    from crossfuse.export.split.assembly import assemble
    from crossfuse.targets.graph_files import load_graph

    manifest = bundle.manifest
    bundle.verified({manifest.fused_graph, WEIGHTS} & set(manifest.files))
    model = load_graph(bundle, manifest.fused_graph)
    decode = None if manifest.decode is None else manifest.decode.tokens
    whole = "model" in manifest.stages
    stages = assemble(
        model, manifest.context, manifest.dims, manifest.example, whole=whole, decode=decode
    )
    if decode is not None and stages.specs["step"].inputs != manifest.stages["step"].inputs:
        raise BundleError(
            "the bundle's step stage is of another form than this version of crossfuse makes",
            where=bundle.path,
            got=manifest.created_by,
            do="Export it again",
        )
    return FusedStages(model, stages)
