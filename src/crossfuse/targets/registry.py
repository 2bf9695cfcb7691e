"""The targets: what each is, which graph it takes, what a CPU can execute of it, and which
precisions it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.errors import unknown
from crossfuse.targets.cuda.missing import NO_BF16

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.targets.lowering import Lowered

__all__ = [
    "IO_DTYPES",
    "PRECISIONS",
    "TARGETS",
    "Target",
    "lower",
    "lower_stages",
    "rehearsal",
    "rehearse_stages",
    "require_precision",
    "require_target",
]

PRECISIONS = ("fp32", "fp16", "bf16", "mixed")
"""What targets compute in; ``mixed`` is fp16 with as few nodes in fp32 as parity needs."""

IO_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Choices for the inputs and outputs of a target: NumPy has no bfloat16."""


@dataclass(frozen=True)
class Target:
    """A target and how its graph is made.

    Attributes:
        name, summary: for people.
        lower: the fused graph, in the target's precision → the graph that the target executes or
            builds its engine from.
        precisions: that it can be built in, the default first.
        simulates: it executes half precision as fp32 that is rounded to it; so does the rehearsal
            of the others.
        engine: the artifact is an engine plan.
        without_bf16: operators that it has no bf16 kernel for; they stay in fp32.
    """

    name: str
    summary: str
    lower: Callable[[ir.Model], Lowered]
    precisions: tuple[str, ...] = PRECISIONS
    simulates: bool = False
    engine: bool = False
    without_bf16: frozenset[str] = frozenset()


def _portable(model: ir.Model) -> Lowered:
    from crossfuse.targets.portable import lower_portable

    return lower_portable(model)


def _ort_cpu(model: ir.Model) -> Lowered:
    from crossfuse.targets.onnxruntime import lower_ort_cpu

    return lower_ort_cpu(model)


def _ort_cuda(model: ir.Model) -> Lowered:
    from crossfuse.targets.cuda.lowering import lower_ort_cuda

    return lower_ort_cuda(model)


def _tensorrt(model: ir.Model) -> Lowered:
    from crossfuse.targets.tensorrt.lowering import lower_tensorrt

    return lower_tensorrt(model)


ORT_CUDA = "ort-cuda"

_TENSORRT_NO_BF16 = frozenset({"ConvTranspose"})
_HALF_FIRST = ("fp16", "bf16", "mixed", "fp32")

TARGETS = {
    target.name: target
    for target in (
        Target("onnx", "portable ONNX with the operator as a function", _portable, ("fp32",)),
        Target("ort-cpu", "ONNX Runtime's fused operators for the CPU", _ort_cpu, simulates=True),
        Target(
            ORT_CUDA,
            "ONNX Runtime's fused operators for NVIDIA GPUs",
            _ort_cuda,
            without_bf16=NO_BF16,
        ),
        Target(
            "tensorrt",
            "TensorRT engine for the GPU at hand",
            _tensorrt,
            _HALF_FIRST,
            engine=True,
            without_bf16=_TENSORRT_NO_BF16,
        ),
        Target(
            "tensorrt-rtx",
            "TensorRT-RTX engine, built without a GPU",
            _tensorrt,
            _HALF_FIRST,
            engine=True,
            without_bf16=_TENSORRT_NO_BF16,
        ),
    )
}


def require_target(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name not in TARGETS:
        raise unknown("unknown target", name, TARGETS)
    return TARGETS[name]


def require_precision(name: str | None, target: Target) -> str:
    """The precision, or the target's own where none is given.

    Raises:
        InputError: the target can't be built in it.
    """
    if name is None:
        return target.precisions[0]
    if name not in target.precisions:
        raise unknown(
            f"target {target.name!r} can't be built in this precision", name, target.precisions
        )
    return name


def lower(model: ir.Model, target: str) -> Lowered:
    """Lower a copy of the fused graph, in any precision; the original stays as it is and weights
    are shared."""
    return require_target(target).lower(model)


def lower_stages(graphs: Mapping[str, ir.Model], target: Target) -> dict[str, Lowered]:
    """Lower all stages of a bundle, in the target's precision, so that they fit each other."""
    if target.name != ORT_CUDA:
        return {stage: target.lower(graph) for stage, graph in graphs.items()}
    from crossfuse.targets.cuda.lowering import lower_ort_cuda
    from crossfuse.targets.cuda.padding import pad_contexts

    fitted, handed = pad_contexts(graphs)
    return {stage: lower_ort_cuda(graph, handed) for stage, graph in fitted.items()}


def rehearse_stages(
    graphs: Mapping[str, ir.Model], target: Target, half_inputs: Iterable[str] = ()
) -> dict[str, ir.Model]:
    """`rehearsal` of all stages of a bundle, so that they fit each other."""
    half = frozenset(half_inputs)
    if target.name != ORT_CUDA:
        return {stage: rehearsal(graph, target, half) for stage, graph in graphs.items()}
    return _rehearsed_cuda(graphs, half)


def rehearsal(model: ir.Model, target: Target, half_inputs: Iterable[str] = ()) -> ir.Model:
    """What the target's graph computes, as a graph that ONNX Runtime's CPU provider executes: for
    checks without a GPU.

    Args:
        model: the fused graph in the target's precision.
        target: the target.
        half_inputs: inputs that the model itself has in half precision; the check gives them so.
    """
    from crossfuse.targets.precision.simulate import simulate

    if target.name == ORT_CUDA:
        return _rehearsed_cuda({"model": model}, half_inputs)["model"]
    simulated = simulate(model, boundary=half_inputs)
    if target.engine:
        from crossfuse.targets.tensorrt.lowering import lower_tensorrt

        return lower_tensorrt(simulated, executable=True).model
    return target.lower(simulated).model


def _rehearsed_cuda(
    graphs: Mapping[str, ir.Model], half_inputs: Iterable[str]
) -> dict[str, ir.Model]:
    """In fp32 with rounding, attentions in the forms that they have in the target's precision."""
    from crossfuse.graph.metadata import attention_nodes, site_of
    from crossfuse.targets.cuda.lowering import is_half, lower_ort_cuda
    from crossfuse.targets.cuda.padding import pad_contexts
    from crossfuse.targets.precision.simulate import simulate

    half = {
        s: {site_of(n) or n.name or "" for n in attention_nodes(g.graph) if is_half(n)}
        for s, g in graphs.items()
    }
    fitted, handed = pad_contexts(
        {stage: simulate(graph, boundary=half_inputs) for stage, graph in graphs.items()}
    )
    return {
        stage: lower_ort_cuda(graph, handed, half[stage]).model for stage, graph in fitted.items()
    }
