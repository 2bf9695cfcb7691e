"""The engines of a target's build: one per stage, and what their layers say of attentions and of
linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.api.arguments import Progress
from crossfuse.api.build_options import BuildOptions, request_key
from crossfuse.api.built_files import BuiltFiles, Fusions
from crossfuse.bundle.manifest import EngineInfo, Manifest
from crossfuse.core.target import Target
from crossfuse.core.tensorrt_linears import linear_types
from crossfuse.targets.registry import lowering_of

if TYPE_CHECKING:
    from crossfuse.bundle.writer import BundleWriter
    from crossfuse.core.linear_ledger import Became
    from crossfuse.core.tensorrt_layers import Layer
    from crossfuse.export.split.assembly import Stages
    from crossfuse.targets.precision.stages import StageGraphs
    from crossfuse.targets.quantize.stages import PlannedLayer

__all__ = ["EngineRequest", "build_engines"]


@dataclass(frozen=True)
class EngineRequest:
    """What engines are built for.

    Attributes:
        stages: of the fused graph.
        target: whose artifacts are engines.
        options: checked ones.
        manifest: of the bundle so far.
        layers: linear layers that are told of.
    """

    stages: Stages
    target: Target
    options: BuildOptions
    manifest: Manifest
    layers: Sequence[PlannedLayer] = ()


def build_engines(
    precise: StageGraphs, request: EngineRequest, writer: BundleWriter, progress: Progress
) -> BuiltFiles:
    """Build the engines of all stages.

    Args:
        precise: the stages' graphs, in the target's precision.
        request: what for.
        writer: of the bundle.
        progress: told what begins.

    Raises:
        EngineError: the builder refuses a graph.
        InputError: profile shapes that the model doesn't have.
    """
    from crossfuse.targets.tensorrt.build_engine import BuilderOptions, build_engine
    from crossfuse.targets.tensorrt.shape_profiles import (
        input_shapes,
        parse_profile,
        profile_sizes,
    )

    stages, target, options = request.stages, request.target, request.options
    requested = [parse_profile(text) for text in options.profile_shapes]
    profiles = profile_sizes(stages.dims, stages.example, requested, stages.shared_batch)
    builder = BuilderOptions(
        options.compute_capabilities,
        options.memory_limit,
        options.optimization_level,
        options.lean,
    )
    fusions = Fusions()
    files: dict[str, str] = {}
    linears: dict[str, Mapping[str, Became]] = {}
    for stage, graph in precise.graphs.items():
        lowered = lowering_of(target).lower(graph)
        files[stage] = target.file(stage)
        shapes = [input_shapes(stages.specs[stage].inputs, sizes) for sizes in profiles]
        built = build_engine(
            target.name,
            stage,
            lowered,
            writer.file(files[stage]),
            shapes,
            builder,
            progress=progress,
        )
        if built.cached:
            progress(f"{target.name}: {stage}: cached")
        fusions.note(built.kernels, built.reasons)
        linears[stage] = _linears(built.layers, request.layers, stage)
    info = _engine_info(request, profiles)
    return BuiltFiles(
        files, frozenset(files.values()), fusions.kernels, fusions.reasons, info, linears
    )


def _linears(
    layers: Sequence[Layer], planned: Sequence[PlannedLayer], stage: str
) -> dict[str, Became]:
    """Name of a linear layer's product → what it became."""
    from crossfuse.targets.quantize.symmetric_products import dequantized_weights

    products = {
        one.key: None if one.weights is None else dequantized_weights(one.key)
        for one in planned
        if one.stage == stage
    }
    return linear_types(layers, products)


def _engine_info(
    request: EngineRequest, profiles: Sequence[Mapping[str, Sequence[int]]]
) -> EngineInfo:
    """What the manifest says about the engines."""
    from crossfuse.targets.tensorrt.libraries import library_of, library_version

    target, options, manifest = request.target, request.options, request.manifest
    return EngineInfo(
        library=library_of(target).module,
        version=library_version(target),
        compute_capabilities=options.compute_capabilities,
        profiles=tuple({dim: tuple(sizes) for dim, sizes in one.items()} for one in profiles),
        lean=options.lean,
        request=request_key(manifest, target.name, options) if manifest.files else "",
    )
