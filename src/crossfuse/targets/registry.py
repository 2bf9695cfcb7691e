"""Lowerings of the targets: the graph that each takes, and what a CPU executes in its place.

What a target is, stands in :mod:`crossfuse.core.target`; here its code is bound to it: that of the
built-in ones by their names, that of engines by their library, that of others as they bring it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.core.foreign import blaming
from crossfuse.core.plugins import Code, resolve
from crossfuse.core.target import CPU_TARGET, Target, require_target
from crossfuse.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.targets.lowering import Lowered

__all__ = [
    "Lowering",
    "cpu_equivalent",
    "cpu_equivalents",
    "lower",
    "lower_stages",
    "lowering_of",
]

Graphs = Mapping[str, "ir.Model"]


@dataclass(frozen=True)
class Lowering:
    """How a target's graphs are made. All functions leave what they are given as it is.

    Attributes:
        lower: the fused graph, in the target's precision → the graph that the target executes or
            builds its engine from.
        on_cpu: the fused graph, in fp32 with roundings → a graph that ONNX Runtime's CPU provider
            executes in its place.
        lower_stages, on_cpu_stages: the same for all stages of a bundle at once, where they have to
            fit each other; the second takes them in the target's precision, and names of inputs
            that the check gives in half precision.
    """

    lower: Callable[[ir.Model], Lowered]
    on_cpu: Callable[[ir.Model], ir.Model]
    lower_stages: Callable[[Graphs], dict[str, Lowered]] | None = None
    on_cpu_stages: Callable[[Graphs, frozenset[str]], dict[str, ir.Model]] | None = None


def lowering_of(target: Target) -> Lowering:
    """How the target's graphs are made."""
    if target.lowering is not None:
        return _own_lowering(target, target.lowering)
    if target.engine is not None:
        return Lowering(_tensorrt, _tensorrt_on_cpu)
    return _BUILT_IN[target.name]


def lower(model: ir.Model, target: str) -> Lowered:
    """Lower a copy of the fused graph, in any precision; the original stays as it is and weights
    are shared."""
    return lowering_of(require_target(target)).lower(model)


def lower_stages(graphs: Graphs, target: Target) -> dict[str, Lowered]:
    """Lower all stages of a bundle, in the target's precision, so that they fit each other."""
    lowering = lowering_of(target)
    if lowering.lower_stages is not None:
        return lowering.lower_stages(graphs)
    return {stage: lowering.lower(graph) for stage, graph in graphs.items()}


def cpu_equivalent(model: ir.Model, target: Target, half_inputs: Iterable[str] = ()) -> ir.Model:
    """What the target's graph computes, as a graph that ONNX Runtime's CPU provider executes: for
    checks without a GPU.

    Args:
        model: the fused graph in the target's precision.
        target: the target.
        half_inputs: inputs that the model itself has in half precision; the check gives them so.
    """
    return cpu_equivalents({"model": model}, target, half_inputs)["model"]


def cpu_equivalents(
    graphs: Graphs, target: Target, half_inputs: Iterable[str] = ()
) -> dict[str, ir.Model]:
    """`cpu_equivalent` of all stages of a bundle, so that they fit each other."""
    from crossfuse.targets.precision.simulate import simulate

    lowering, half = lowering_of(target), frozenset(half_inputs)
    if lowering.on_cpu_stages is not None:
        return lowering.on_cpu_stages(graphs, half)
    return {
        stage: lowering.on_cpu(simulate(graph, boundary=half)) for stage, graph in graphs.items()
    }


def _own_lowering(target: Target, code: Code) -> Lowering:
    """Of a target that brings its code, which is somebody else's."""

    def lower_graph(model: ir.Model) -> Lowered:
        from crossfuse.targets.lowering import Lowered

        who = f"the lowering of target {target.name!r}"
        with blaming(f"{who} raised"):
            lowered = resolve(code, who)(model)
        if not isinstance(lowered, Lowered):
            raise InputError(
                f"{who} gives no lowered graph",
                got=repr(lowered),
                expected="crossfuse.targets.lowering.Lowered",
            )
        return lowered

    def on_cpu(model: ir.Model) -> ir.Model:
        if target.cpu_equivalent is None:
            return lower_graph(model).model
        who = f"the CPU equivalent of target {target.name!r}"
        with blaming(f"{who} raised"):
            graph: ir.Model = resolve(target.cpu_equivalent, who)(model)
        return graph

    return Lowering(lower_graph, on_cpu)


def _portable(model: ir.Model) -> Lowered:
    from crossfuse.targets.portable import lower_portable

    return lower_portable(model)


def _ort_cpu(model: ir.Model) -> Lowered:
    from crossfuse.targets.onnxruntime import lower_ort_cpu

    return lower_ort_cpu(model)


def _openvino(model: ir.Model) -> Lowered:
    from crossfuse.targets.openvino import lower_openvino

    return lower_openvino(model)


def _tensorrt(model: ir.Model) -> Lowered:
    from crossfuse.targets.tensorrt.lowering import lower_tensorrt

    return lower_tensorrt(model)


def _tensorrt_on_cpu(model: ir.Model) -> ir.Model:
    from crossfuse.targets.tensorrt.lowering import lower_tensorrt

    return lower_tensorrt(model, executable=True).model


def _ort_cuda(model: ir.Model) -> Lowered:
    from crossfuse.targets.cuda.lowering import lower_ort_cuda

    return lower_ort_cuda(model)


def _ort_cuda_stages(graphs: Graphs) -> dict[str, Lowered]:
    """A context stage's keys and values are padded once, for all queries."""
    from crossfuse.targets.cuda.lowering import lower_ort_cuda
    from crossfuse.targets.cuda.padding import pad_contexts

    fitted, handed = pad_contexts(graphs)
    return {stage: lower_ort_cuda(graph, handed) for stage, graph in fitted.items()}


def _ort_cuda_on_cpu(graphs: Graphs, half_inputs: frozenset[str]) -> dict[str, ir.Model]:
    """In fp32 with rounding, attentions in the forms that they have in the target's precision."""
    from crossfuse.graph.attention_node import attentions
    from crossfuse.targets.cuda.lowering import is_half, lower_ort_cuda
    from crossfuse.targets.cuda.padding import pad_contexts
    from crossfuse.targets.precision.simulate import simulate

    half = {
        stage: {found.site for found in attentions(graph.graph) if is_half(found)}
        for stage, graph in graphs.items()
    }
    fitted, handed = pad_contexts(
        {stage: simulate(graph, boundary=half_inputs) for stage, graph in graphs.items()}
    )
    return {
        stage: lower_ort_cuda(graph, handed, half[stage]).model for stage, graph in fitted.items()
    }


_BUILT_IN: Mapping[str, Lowering] = {
    "onnx": Lowering(_portable, lambda model: _portable(model).model),
    CPU_TARGET: Lowering(_ort_cpu, lambda model: _ort_cpu(model).model),
    "openvino": Lowering(_openvino, lambda model: _openvino(model).model),
    "ort-cuda": Lowering(
        _ort_cuda,
        lambda model: _ort_cuda(model).model,
        lower_stages=_ort_cuda_stages,
        on_cpu_stages=_ort_cuda_on_cpu,
    ),
}
"""Of the built-in targets whose artifacts are graphs."""
