"""The targets: what each is, which graph it takes, what a CPU can execute of it, and which precisions it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.build.lowering import Lowered

__all__ = ["IO_DTYPES", "PRECISIONS", "TARGETS", "Target", "lower", "rehearsal", "require_precision", "require_target"]

PRECISIONS = ("fp32", "fp16", "bf16", "mixed")
"""What targets compute in; ``mixed`` is fp16 with as few nodes in fp32 as parity needs."""

IO_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Choices for the inputs and outputs of a target: NumPy has no bfloat16."""


@dataclass(frozen=True)
class Target:
    """A target and how its graph is made.

    Attributes:
        name, summary: for people.
        lower: the fused graph, in the target's precision → the graph that the target executes or builds its engine from.
        precisions: that it can be built in, the default first.
        simulates: it executes half precision as fp32 that is rounded to it; so does the rehearsal of the others.
        engine: the artifact is an engine plan.
    """

    name: str
    summary: str
    lower: Callable[[ir.Model], Lowered]
    precisions: tuple[str, ...] = PRECISIONS
    simulates: bool = False
    engine: bool = False


def _portable(model: ir.Model) -> Lowered:
    from crossfuse.build.portable import lower_portable

    return lower_portable(model)


def _ort_cpu(model: ir.Model) -> Lowered:
    from crossfuse.build.onnxruntime import lower_ort_cpu

    return lower_ort_cpu(model)


def _ort_cuda(model: ir.Model) -> Lowered:
    from crossfuse.build.onnxruntime import lower_ort_cuda

    return lower_ort_cuda(model)


def _tensorrt(model: ir.Model) -> Lowered:
    from crossfuse.build.tensorrt.lowering import lower_tensorrt

    return lower_tensorrt(model)


_HALF_FIRST = ("fp16", "bf16", "mixed", "fp32")

TARGETS = {
    target.name: target
    for target in (
        Target("onnx", "portable ONNX with the operator as a function", _portable, ("fp32",)),
        Target("ort-cpu", "ONNX Runtime's fused operators for the CPU", _ort_cpu, simulates=True),
        Target("ort-cuda", "ONNX Runtime's fused operators for NVIDIA GPUs", _ort_cuda),
        Target("tensorrt", "TensorRT engine for the GPU at hand", _tensorrt, _HALF_FIRST, engine=True),
        Target("tensorrt-rtx", "TensorRT-RTX engine, built without a GPU", _tensorrt, _HALF_FIRST, engine=True),
    )
}


def require_target(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TARGETS:
        raise InputError("unknown target", got=repr(name), expected=", ".join(TARGETS))
    return TARGETS[name]


def require_precision(name: str | None, target: Target) -> str:
    """The precision, or the target's own where none is given.

    Raises:
        InputError: the target can't be built in it.
    """
    if name is None:
        return target.precisions[0]
    if name not in target.precisions:
        raise InputError(
            f"target {target.name!r} can't be built in this precision", got=repr(name), expected=", ".join(target.precisions)
        )
    return name


def lower(model: ir.Model, target: str) -> Lowered:
    """Lower a copy of the fused graph, in any precision; the original stays as it is and weights are shared."""
    return require_target(target).lower(model)


def rehearsal(model: ir.Model, target: Target, half: Iterable[str] = ()) -> ir.Model:
    """What the target's graph computes, as a graph that ONNX Runtime's CPU provider executes: for checks without a GPU.

    Args:
        model: the fused graph in the target's precision.
        target: the target.
        half: names of half inputs that stay so.
    """
    from crossfuse.build.precision.simulate import simulate

    simulated = simulate(model, boundary=half)
    if target.engine:
        from crossfuse.build.tensorrt.lowering import lower_tensorrt

        return lower_tensorrt(simulated, executable=True).model
    return target.lower(simulated).model
