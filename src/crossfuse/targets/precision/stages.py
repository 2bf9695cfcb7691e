"""The graphs of a bundle's stages in a precision, consistent with each other at the tensors that
they hand over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.targets.precision.cast import HALF_TYPES, cast_graph
from crossfuse.targets.precision.islands import node_key
from crossfuse.targets.precision.mixed_search import BASE, search
from crossfuse.targets.precision.wide_biases import bias_inputs, wide_outputs

__all__ = ["StageGraphs", "half_stages", "search_islands"]


@dataclass(frozen=True)
class StageGraphs:
    """Stage graphs in a precision.

    Attributes:
        graphs: by stage.
        kept: node that stayed in fp32 → why.
        boundary: tensors between or around the stages whose dtype is not the manifest's → their
            dtype.
    """

    graphs: Mapping[str, ir.Model]
    kept: Mapping[str, str] = field(default_factory=dict)
    boundary: Mapping[str, str] = field(default_factory=dict)


def half_stages(
    graphs: Mapping[str, ir.Model],
    precision: str,
    *,
    keep: Mapping[str, str] | None = None,
    half_handover: bool = False,
    half_io: Sequence[str] = (),
    without_bf16: Collection[str] = (),
) -> StageGraphs:
    """Cast every stage.

    Args:
        graphs: fused, in fp32.
        precision: ``fp16``, ``bf16``, or ``mixed`` with its islands in ``keep``.
        keep: nodes that stay in fp32 → why.
        half_handover: what the context stage hands over is kept in half precision where it is
            computed so.
        half_io: inputs and outputs of the whole that become half floats.
        without_bf16: operators that the target has no bf16 kernel for.
    """
    base = BASE if precision == "mixed" else precision
    half = set(half_io)
    handed, bounded = _handed_biases(graphs)
    if half_handover and "context" in graphs:
        context = graphs["context"]
        islands = cast_graph(
            context, base, keep=keep, without_bf16=without_bf16, handed=handed
        ).kept
        half |= _computed_in_half(context.graph, islands)
    found: dict[str, ir.Model] = {}
    kept: dict[str, str] = {}
    for stage, graph in graphs.items():
        cast = cast_graph(
            graph,
            base,
            keep=keep,
            boundary=half,
            without_bf16=without_bf16,
            bounded=bounded,
            handed=handed,
        )
        found[stage] = cast.model
        kept |= cast.kept
    dtype = HALF_TYPES[base].numpy().name
    return StageGraphs(found, kept, dict.fromkeys(sorted(half), dtype))


def _computed_in_half(graph: ir.Graph, islands: Collection[str]) -> set[str]:
    """Names of the fp32 outputs whose node is no island."""
    return {
        value.name or ""
        for value in graph.outputs
        if value.dtype == ir.DataType.FLOAT
        and (producer := value.producer()) is not None
        and node_key(producer) not in islands
    }


def _handed_biases(graphs: Mapping[str, ir.Model]) -> tuple[set[str], set[str]]:
    """Of the tensors that one stage hands to another as biases: those that may be beyond the range,
    and those that are not."""
    given = {value.name or "" for graph in graphs.values() for value in graph.graph.outputs}
    taken = given & {name for graph in graphs.values() for name in bias_inputs(graph.graph)}
    wide = {name for graph in graphs.values() for name in wide_outputs(graph.graph, taken)}
    return wide, taken - wide


def search_islands(
    model: ir.Model,
    graphs: Mapping[str, ir.Model],
    points: Sequence[Mapping[str, NDArray[Any]]],
    passes: Callable[[Mapping[str, ir.Model]], bool],
    *,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Nodes that mixed precision keeps in fp32 → why; see
    :mod:`crossfuse.targets.precision.mixed_search`.

    Args:
        model: the whole fused graph.
        graphs: its stages.
        points: calibration inputs.
        passes: whether parity holds for stage graphs in half precision.
        progress: told what is tried.
    """
    return search(
        model,
        points,
        lambda keep: passes(half_stages(graphs, "mixed", keep=keep).graphs),
        progress=progress,
    )
