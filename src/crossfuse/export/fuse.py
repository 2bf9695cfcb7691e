"""The export story: count, trace, capture, translate, name, and open the ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from torch import nn

from crossfuse.export.capture import capture, named_outputs
from crossfuse.export.census import Sighting, census
from crossfuse.export.kinds import Dataflow
from crossfuse.export.passes.layout import cancel_layout_changes
from crossfuse.export.passes.outputs import separate_outputs
from crossfuse.export.passes.provenance import trim_metadata
from crossfuse.export.passes.sdpa import fuse_sdpa
from crossfuse.export.passes.sites import name_sites, site_name
from crossfuse.export.translate import module_path, program_to_onnx
from crossfuse.graphs import attention_nodes
from crossfuse.ledger import Ledger, LedgerRow
from crossfuse.model_spec import ModelSpec
from crossfuse.specs import TensorSpec

__all__ = ["FusedGraph", "fuse"]


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


def fuse(spec: ModelSpec, step: Callable[[str], None] = lambda _: None) -> FusedGraph:
    """Trace a module and fuse its attentions; ``step`` is told what begins.

    Raises:
        InputError: the module can't run, be traced or be translated.
    """
    step("counting attentions in eager execution")
    inputs = spec.sample(spec.example_sizes, seed=0)
    sightings = census(spec.module, inputs)
    with torch.no_grad():
        outputs = tuple(named_outputs(spec.module(**inputs)))
    step("tracing with torch.export")
    program, spec = capture(spec)
    captured = Counter(s.form for s in sightings)
    program, _, mismatches = fuse_sdpa(program)
    step("translating to ONNX")
    model = program_to_onnx(program, spec, outputs)
    step("fusing")
    model, _ = cancel_layout_changes(model)
    CommonSubexpressionEliminationPass()(model)
    model, _ = separate_outputs(model, outputs)
    model, _ = name_sites(model)
    ledger = _ledger(model, sightings, mismatches, _first_names(spec.module), from_sdpa=captured["operator"] == 0)
    model, _ = trim_metadata(model)
    return FusedGraph(spec, model, ledger, _specs(model.graph.inputs), _specs(model.graph.outputs))


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every path of every module → its first path: a module registered twice is seen under one name by the census."""
    first = {m: name for name, m in module.named_modules()}
    return {name: first[m] for name, m in module.named_modules(remove_duplicate=False)}


def _ledger(
    model: ir.Model, sightings: list[Sighting], mismatches: list[str], first_names: dict[str, str], *, from_sdpa: bool
) -> Ledger:
    """A row per node, then a row per sighting that no node accounts for."""
    flow, per_module = Dataflow(model), defaultdict[str, list[Sighting]](list)
    for sighting in sightings:
        per_module[sighting.module].append(sighting)
    rows, found = [], Counter[str]()
    for node in attention_nodes(model.graph):
        path = first_names.get(module_path(node), module_path(node))
        seen = per_module[path]
        form = seen[found[path]].form if found[path] < len(seen) else ("sdpa" if from_sdpa else "operator")
        found[path] += 1
        rows.append(_row(node, flow, "operator" if form == "operator" else "sdpa"))
    whys = iter(mismatches)
    for path, seen in per_module.items():
        spare = len(seen) - found[path]
        # The sightings left over are those no pass can capture first, then the rest in order.
        ordered = sorted(range(len(seen)), key=lambda i: (seen[i].form != "products", i))
        for extra, index in enumerate(sorted(ordered[: max(spare, 0)]), start=1):
            sighting = seen[index]
            why = sighting.reason if sighting.form == "products" else next(whys, sighting.reason)
            site = site_name(path, found[path] + extra)
            rows.append(LedgerRow(site, "unknown", None, reasons={"capture": why}))
    return Ledger(tuple(rows))


def _row(node: ir.Node, flow: Dataflow, captured: str) -> LedgerRow:
    heads, kv_heads = (int(node.attributes[name].as_int()) for name in ("num_heads", "kv_num_heads"))
    query, key, value = node.inputs[:3]

    def head_size(tensor: ir.Value | None, count: int) -> int | None:
        width = None if tensor is None or tensor.shape is None else tensor.shape[2]
        return width // count if isinstance(width, int) else None

    return LedgerRow(
        site=node.name or "",
        kind=flow.kind(node),
        captured=captured,
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=head_size(query, heads),
        value_size=head_size(value, kv_heads),
        query_inputs=flow.reaching(query),
        key_inputs=flow.reaching(key, value),
    )


def _specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        assert value.shape is not None, f"{value.name} has no shape"
        assert value.dtype is not None, f"{value.name} has no type"
        shape = tuple(s if isinstance(s, int) else str(s.value) for s in value.shape)
        specs.append(TensorSpec(value.name or "", value.dtype.numpy().name, shape))
    return tuple(specs)
