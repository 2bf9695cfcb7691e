"""The export story: count, trace, capture, translate, name, and open the ledger.

`fusion_passes` and `PROGRAM_PASSES` are the passes in the order in which they run, each with the
reason for its place; passes of other packages join them (`passes.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from crossfuse.core.foreign import blaming
from crossfuse.core.garbage import uncollected
from crossfuse.core.ledger import Ledger
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError
from crossfuse.export.capture.census import Sighting, census
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.indices import index_ranges, note_ranges
from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.capture.onnx_census import graph_census, nested_attentions
from crossfuse.export.capture.to_onnx import program_to_onnx
from crossfuse.export.capture.trace import capture
from crossfuse.export.keep_probabilities import KeptProbabilities, kept_probabilities
from crossfuse.export.ledger_rows import open_ledger, where_joined
from crossfuse.export.passes.absorb_scales import AbsorbScalesPass
from crossfuse.export.passes.base import (
    FusionPass,
    Missed,
    ProgramPass,
    run_passes,
    run_program_passes,
)
from crossfuse.export.passes.cancel_layout import CancelLayoutPass
from crossfuse.export.passes.drop_key_bias import DropKeyBiasPass
from crossfuse.export.passes.drop_outputs import DropOutputsPass
from crossfuse.export.passes.exact_sigmoids import ExactSigmoidsPass
from crossfuse.export.passes.fill_assigned_masks import FillAssignedMasksPass
from crossfuse.export.passes.fold_affine import FoldAffinePass
from crossfuse.export.passes.fuse_onnx_attention import FuseOnnxAttentionPass
from crossfuse.export.passes.fuse_sdpa import FuseSdpaPass
from crossfuse.export.passes.fuse_unfused_attention import FuseUnfusedAttentionPass
from crossfuse.export.passes.group_heads import GroupHeadsPass
from crossfuse.export.passes.join_sinks import JoinSinksPass
from crossfuse.export.passes.merge_duplicates import MergeDuplicatesPass
from crossfuse.export.passes.name_sites import NameSitesPass
from crossfuse.export.passes.registry import PASSES
from crossfuse.export.passes.separate_outputs import SeparateOutputsPass
from crossfuse.export.passes.separate_probabilities import SeparateProbabilitiesPass
from crossfuse.export.passes.split_einsums import SplitEinsumsPass
from crossfuse.export.passes.strip_metadata import StripMetadataPass
from crossfuse.export.passes.unify_exponentials import UnifyExponentialsPass
from crossfuse.export.passes.unify_products import UnifyProductsPass
from crossfuse.export.passes.unify_softmaxes import UnifySoftmaxesPass
from crossfuse.export.passes.unify_sums import UnifySumsPass
from crossfuse.export.sources.onnx_file.load import OnnxModule, load_onnx
from crossfuse.export.unread_inputs import unread_inputs
from crossfuse.graph.shapes import boundary
from crossfuse.spec.checks import check_tensors
from crossfuse.spec.input_origin import UNREAD
from crossfuse.spec.model_spec import ModelSpec
from crossfuse.spec.results import distinct_names, told_of

__all__ = ["PROGRAM_PASSES", "FusedGraph", "fuse", "fusion_passes"]

Progress = Callable[[str], None]

PROGRAM_PASSES: tuple[ProgramPass, ...] = (
    # The exporter would scatter what is assigned; the matching knows fills.
    FillAssignedMasksPass(),
    # The exporter would write these calls out, and their masks with them.
    FuseSdpaPass(),
)
"""What runs on the exported program of a module, before it becomes a graph."""

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

    kept: KeptProbabilities
    model: ir.Model
    sightings: Sequence[Sighting]
    outputs: tuple[str, ...]
    missed: Sequence[Missed] = ()
    interfaced: Collection[str] = ()
    joined: Collection[str] = ()


@without_fast_paths()
def fuse(spec: ModelSpec, progress: Progress = lambda _: None) -> FusedGraph:
    """Trace a module, or read a file, and fuse its attentions; ``progress`` is told what
    begins.

    Raises:
        InputError: the module can't run, be traced or be translated.
    """
    source = (
        _read(spec, spec.module, progress)
        if isinstance(spec.module, OnnxModule)
        else _trace(spec, progress)
    )
    spec, model = source.kept.spec, source.model
    outputs = tuple(spec.kept(dict.fromkeys(source.outputs)))
    progress("fusing")
    passes = fusion_passes(source.outputs, outputs, source.kept.modules)
    fused = run_passes(model, PASSES.placed(passes))
    missed = [*source.missed, *fused.missed]
    sightings = where_joined(source.sightings, source.joined)
    ledger = open_ledger(
        fused.model, spec.module, sightings, missed, source.interfaced, source.joined
    )
    ledger = ledger.with_probabilities(source.kept.sites)
    # Behind the ledger, which reads how each attention was captured.
    model = run_passes(fused.model, [StripMetadataPass()]).model
    unread = unread_inputs(model.graph)
    if unread:
        spec = replace(spec, about={**spec.about, UNREAD: unread})
    return FusedGraph(
        spec, model, ledger, boundary(model.graph.inputs), boundary(model.graph.outputs)
    )


def fusion_passes(
    outputs: Sequence[str], kept: Sequence[str], keeping: Collection[str] = ()
) -> list[FusionPass]:
    """The passes over the graph, in order.

    Args:
        outputs: names of the graph's outputs, in its order.
        kept: those that the model is to have.
        keeping: paths of modules whose attentions keep their probabilities.
    """
    return [
        # First: an attention that only a dropped output needs, or whose probabilities are one, is
        # nothing to fuse, or fuses without it.
        DropOutputsPass(outputs, kept),
        # Products have three forms from here on: MatMul, Gemm and Einsum.
        UnifySumsPass(),
        # The products below are of two operands.
        SplitEinsumsPass(),
        # The matching knows products as MatMul alone.
        UnifyProductsPass(),
        # What follows knows exponentials to the base e alone.
        UnifyExponentialsPass(),
        # The matching knows sinks as columns beside the scores alone.
        JoinSinksPass(),
        # Behind the products, of which a quotient of exponentials may be one; the matching knows
        # Softmax alone.
        UnifySoftmaxesPass(),
        # Before the written-out ones: an attention that is one node already is taken at its word,
        # and its output ends the way back from the queries of the next one.
        FuseOnnxAttentionPass(),
        # All forms of a softmax are one by now; the fusion wants it for itself.
        SeparateProbabilitiesPass(keeping),
        FuseUnfusedAttentionPass(),
        # Behind the fusion, which reads sigmoids by name; before names are given to outputs.
        ExactSigmoidsPass(),
        # A factor between layout operators would keep them from cancelling, and hides repetitions.
        AbsorbScalesPass(),
        # While the layout around a repetition is what the exporter wrote; what it leaves of it
        # cancels next.
        GroupHeadsPass(),
        # All operands have their last form.
        CancelLayoutPass(),
        # A bias stands right in front of the keys only once the layout between them is gone.
        DropKeyBiasPass(),
        # While what scales a convolution is still its own, and not merged with another's.
        FoldAffinePass(),
        # All attentions are there; they are named in order of execution.
        NameSitesPass(),
        # Behind everything that asks whether a value has other uses: shared values have many.
        MergeDuplicatesPass(),
        # Last: any pass may put one value in the place of two outputs.
        SeparateOutputsPass(kept),
    ]


def _trace(spec: ModelSpec, progress: Progress) -> _Source:
    progress("counting attentions in eager execution")
    check_tensors(spec)
    inputs = spec.sample(spec.example_sizes, seed=0)
    sizes = {name: tuple(t.shape) for name, t in inputs.items()}
    where = f"{spec.name} on {sizes}"
    with (
        blaming("the eager model fails on inputs like its examples:", where=where, do=_RUN),
        torch.no_grad(),
        kept_state(spec.module),
    ):
        result = spec.call(inputs)
        spec = replace(spec, about={**spec.about, **told_of(spec, result)})
        outputs = tuple(spec.outputs_of(result))
    with blaming("the model runs, but its operators can't be watched:", where=spec.name, do=_WATCH):
        sightings = census(spec.module, inputs, spec.arguments)
    kept = kept_probabilities(spec, sightings)
    if kept.spec is not spec:
        spec = kept.spec
        with torch.no_grad():
            outputs = tuple(spec.outputs_of(spec.call(inputs)))
    # Tracing makes and keeps many objects, and no tensors.
    with spec.tracing(spec.module) as tracing, uncollected():
        progress("tracing with torch.export")
        program, spec = capture(spec, defer_guards=tracing.defer_guards)
        ranges = index_ranges(program, spec)
        traced = run_program_passes(program, PROGRAM_PASSES)
        progress("translating to ONNX")
        with _blaming_bodies(sightings):
            model = program_to_onnx(traced.program, spec, outputs, tracing)
        note_ranges(model, ranges, spec.counts)
    kept = replace(kept, spec=spec)
    return _Source(
        kept, model, sightings, outputs, traced.missed, tracing.interfaced, tracing.joined
    )


@contextmanager
def _blaming_bodies(sightings: Sequence[Sighting]) -> Iterator[None]:
    """An attention in a loop's body may be what the exporter can't translate."""
    inside = next((sighting for sighting in sightings if sighting.body), None)
    try:
        yield
    except InputError as error:
        if inside is None:
            raise
        raise InputError(
            f"an attention can't be exported: {inside.reason}", where=inside.module or "(root)"
        ) from error


def _read(spec: ModelSpec, module: OnnxModule, progress: Progress) -> _Source:
    progress("reading the graph")
    model = load_onnx(module.path, spec.axes)
    # As the results of the file's module are called.
    outputs = tuple(distinct_names([v.name or "" for v in model.graph.outputs], spec.inputs))
    nested = [
        Missed(path, f"it is inside the body of {body}, where no target fuses")
        for path, body in nested_attentions(model)
    ]
    sightings = graph_census(model)
    kept = kept_probabilities(spec, sightings)
    return _Source(kept, model, sightings, outputs, nested)
