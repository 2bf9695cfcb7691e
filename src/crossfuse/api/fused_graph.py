"""The fused graph that a bundle holds, with the stages that it was split into: what targets are
built from, and checked again on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crossfuse import __version__
from crossfuse.core.tensors import names_of
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
        BundleError: a damaged file, or a bundle whose version split the graph otherwise.
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
    _require_same_split(bundle, stages)
    return FusedStages(model, stages)


def _require_same_split(bundle: Bundle, stages: Stages) -> None:
    """Graphs that this version splits belong to the manifest's stages, and to the bundle's other
    targets."""
    for name, known in bundle.manifest.stages.items():
        found = stages.specs.get(name)
        theirs = [*names_of(known.inputs), *names_of(known.outputs)]
        ours = [] if found is None else [*names_of(found.inputs), *names_of(found.outputs)]
        same = ours == theirs and (name != "step" or found is None or found.inputs == known.inputs)
        if not same:
            raise BundleError(
                "the bundle was written by a version of crossfuse that splits the model "
                f"otherwise than this one ({__version__}), so nothing can be built from its fused "
                "graph",
                where=f"{bundle.path}, stage {name}",
                got=f"stages of {bundle.manifest.created_by}",
                do="Export the model again with this version, or go on with the version that wrote "
                "the bundle; the targets that it has still run",
            )
