"""Which engine executes which target, and whether it is here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.bundle.manifest import EngineInfo
from crossfuse.core.onnx_runtime import has_onnxruntime, require_onnxruntime
from crossfuse.errors import BundleError
from crossfuse.runtime.driver import gpu_count
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.tensorrt_stage import RUNTIMES, TrtStage, runtime_module

if TYPE_CHECKING:
    from crossfuse.runtime.stage import Stage

__all__ = ["PROVIDERS", "best_target", "open_stage", "runs_here"]

PROVIDERS = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "ort-cuda": "CUDAExecutionProvider",
    "ort-cpu": "CPUExecutionProvider",
    "onnx": "CPUExecutionProvider",
}
"""Target → ONNX Runtime execution provider, or the engine's library, best first."""


def best_target(available: Iterable[str]) -> str:
    """The best of a bundle's targets that can run here.

    Raises:
        BundleError: none can.
    """
    names = set(available)
    for target in PROVIDERS:
        if target in names and runs_here(target):
            return target
    raise BundleError(
        "no target of the bundle can run here",
        got=", ".join(sorted(names)) or "no targets",
        do="Install an engine (pip install 'crossfuse[cpu]' or 'crossfuse[gpu]'), or build another "
        "target",
    )


def runs_here(target: str) -> bool:
    """The target's own engine is installed, and the GPU that it needs is there."""
    if target in RUNTIMES:
        return runtime_module(target, lean=True) is not None and gpu_count() > 0
    if target not in PROVIDERS or not has_onnxruntime():
        return False
    return target != "ort-cuda" or gpu_count() > 0


def open_stage(
    target: str,
    graph: Path,
    options: SessionOptions,
    *,
    alone: bool = True,
    engine: EngineInfo | None = None,
) -> Stage:
    """Open one stage's graph on the target's engine; ``alone`` says that the bundle has no other
    stage.

    Raises:
        BundleError: the engine is not installed, or can't execute this graph here.
    """
    if target not in PROVIDERS:
        raise BundleError(
            "this version of the runtime has no engine for the target",
            got=repr(target),
            expected=", ".join(PROVIDERS),
        )
    if target in RUNTIMES:
        if engine is None:
            raise BundleError(
                "the manifest says nothing about the engine",
                where=graph.name,
                do="Build the target again",
            )
        return TrtStage(graph, target, engine, options)
    require_onnxruntime(f"target {target!r}", BundleError)
    from crossfuse.runtime.onnxruntime_stage import OrtStage

    return OrtStage(graph, options.provider or PROVIDERS[target], options, alone=alone)
