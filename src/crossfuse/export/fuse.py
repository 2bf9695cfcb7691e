"""The export story: count, trace, capture, translate, name, and open the ledger."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from crossfuse.core.foreign import blaming
from crossfuse.core.ledger import Ledger
from crossfuse.core.tensors import TensorSpec
from crossfuse.export.capture.census import Sighting, census
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.indices import index_ranges, note_ranges
from crossfuse.export.capture.onnx_census import graph_census, nested_attentions
from crossfuse.export.capture.to_onnx import program_to_onnx
from crossfuse.export.capture.trace import capture, named_outputs
from crossfuse.export.ledger_rows import Missed, open_ledger
from crossfuse.export.passes.duplicates import merge_duplicates
from crossfuse.export.passes.fuse_unfused_attention import fuse_handwritten
from crossfuse.export.passes.grouped_heads import group_heads
from crossfuse.export.passes.key_bias import drop_key_bias
from crossfuse.export.passes.layout import cancel_layout_changes
from crossfuse.export.passes.onnx_attention import fuse_onnx_attention
from crossfuse.export.passes.outputs import drop_outputs, separate_outputs
from crossfuse.export.passes.products import unify_products
from crossfuse.export.passes.scales import absorb_scales
from crossfuse.export.passes.sdpa import fuse_sdpa
from crossfuse.export.passes.sigmoids import compute_sigmoids_exactly
from crossfuse.export.passes.sites import name_sites
from crossfuse.export.passes.strip_metadata import trim_metadata
from crossfuse.export.sources.onnx_file.load import OnnxModule, load_onnx
from crossfuse.graph.metadata import boundary
from crossfuse.spec.checks import check_tensors
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["FusedGraph", "fuse"]

Step = Callable[[str], None]

_RUN = "Make the module run in PyTorch first: module(**inputs)"
_WATCH = (
    "Call F.scaled_dot_product_attention or crossfuse's fused_attention instead of the "
    "operator that it names"
)


@dataclass(frozen=True)
class FusedGraph:
    """An ONNX graph in which every captured attention is one node, with its ledger and boundary.

    ``spec`` is the one that was fused, with the limits of dynamic dimensions that tracing found.
    """

    spec: ModelSpec
    model: ir.Model
    ledger: Ledger
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class _Source:
    """A graph before its attentions are fused, and what is known about them."""

    spec: ModelSpec
    model: ir.Model
    sightings: Sequence[Sighting]
    outputs: tuple[str, ...]
    missed: Sequence[Missed] = ()
    interfaced: Collection[str] = ()


@without_fast_paths()
def fuse(spec: ModelSpec, step: Step = lambda _: None) -> FusedGraph:
    """Trace a module, or read a file, and fuse its attentions; ``step`` is told what begins.

    Raises:
        InputError: the module can't run, be traced or be translated.
    """
    source = (
        _read(spec, spec.module, step)
        if isinstance(spec.module, OnnxModule)
        else _trace(spec, step)
    )
    spec, model = source.spec, source.model
    outputs = tuple(spec.kept(dict.fromkeys(source.outputs)))
    step("fusing")
    model, _ = drop_outputs(model, source.outputs, outputs)
    model, _ = unify_products(model)
    model, _, nodes_missed = fuse_onnx_attention(model)
    model, _, missed = fuse_handwritten(model)
    model, _ = compute_sigmoids_exactly(model)
    model, _ = absorb_scales(model)
    model, _ = group_heads(model)
    model, _ = cancel_layout_changes(model)
    model, _ = drop_key_bias(model)
    model, _ = name_sites(model)
    model, _ = merge_duplicates(model)
    model, _ = separate_outputs(model, outputs)
    ledger = open_ledger(
        model,
        spec.module,
        source.sightings,
        [*source.missed, *nodes_missed, *missed],
        source.interfaced,
    )
    model, _ = trim_metadata(model)
    return FusedGraph(
        spec, model, ledger, boundary(model.graph.inputs), boundary(model.graph.outputs)
    )


def _trace(spec: ModelSpec, step: Step) -> _Source:
    step("counting attentions in eager execution")
    check_tensors(spec)
    inputs = spec.sample(spec.example_sizes, seed=0)
    sizes = {name: tuple(t.shape) for name, t in inputs.items()}
    where = f"{spec.name} on {sizes}"
    with (
        blaming("the eager model fails on inputs like its examples:", where=where, do=_RUN),
        torch.no_grad(),
    ):
        outputs = tuple(named_outputs(spec.module(**inputs)))
    with blaming("the model runs, but its operators can't be watched:", where=spec.name, do=_WATCH):
        sightings = census(spec.module, inputs)
    with spec.tracing(spec.module) as tracing:
        step("tracing with torch.export")
        program, spec = capture(spec, defer_guards=tracing.defer_guards)
        ranges = index_ranges(program, spec)
        program, _, missed = fuse_sdpa(program)
        step("translating to ONNX")
        model = program_to_onnx(program, spec, outputs, tracing)
        note_ranges(model, ranges)
    return _Source(spec, model, sightings, outputs, missed, tracing.interfaced)


def _read(spec: ModelSpec, module: OnnxModule, step: Step) -> _Source:
    step("reading the graph")
    model = load_onnx(module.path, spec.axes)
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    nested = [
        Missed(path, f"it is inside the body of {body}, where no target fuses")
        for path, body in nested_attentions(model)
    ]
    return _Source(spec, model, graph_census(model), outputs, nested)
