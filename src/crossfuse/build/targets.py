"""The targets: what each is, which graph it takes, and which operators count as a fused attention there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PRECISIONS", "TARGETS", "Lowered", "Target", "lower", "require_precision", "require_target"]

PRECISIONS = ("fp32",)
"""Precisions that every target can be built in."""


@dataclass(frozen=True)
class Lowered:
    """A target's graph, and site → kernel for every attention that became a fused operator in it."""

    model: ir.Model
    kernels: dict[str, str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Target:
    """A target and how its graph is made."""

    name: str
    summary: str
    lower: Callable[[ir.Model], Lowered]


def _portable(model: ir.Model) -> Lowered:
    from crossfuse.build.portable import lower_portable

    return lower_portable(model)


def _ort_cpu(model: ir.Model) -> Lowered:
    from crossfuse.build.onnxruntime import lower_ort_cpu

    return lower_ort_cpu(model)


def _ort_cuda(model: ir.Model) -> Lowered:
    from crossfuse.build.onnxruntime import lower_ort_cuda

    return lower_ort_cuda(model)


TARGETS = {
    target.name: target
    for target in (
        Target("onnx", "portable ONNX with the operator as a function", _portable),
        Target("ort-cpu", "ONNX Runtime's fused operators for the CPU", _ort_cpu),
        Target("ort-cuda", "ONNX Runtime's fused operators for NVIDIA GPUs", _ort_cuda),
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


def require_precision(name: str) -> str:
    """The precision, if it can be built.

    Raises:
        InputError: it can't.
    """
    if name not in PRECISIONS:
        raise InputError("this precision can't be built", got=repr(name), expected=" or ".join(PRECISIONS))
    return name


def lower(model: ir.Model, target: str) -> Lowered:
    """Lower a copy of the fused graph; the original stays as it is and weights are shared."""
    return require_target(target).lower(model)
