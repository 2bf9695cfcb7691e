"""Which engine executes which target, whether it is here, and how a stage is opened on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from crossfuse.core.foreign import blaming
from crossfuse.core.onnx_runtime import require_onnxruntime
from crossfuse.core.openvino import require_openvino
from crossfuse.core.plugins import resolve
from crossfuse.core.target import TARGETS, Target
from crossfuse.errors import BundleError, CrossfuseError
from crossfuse.runtime.driver import gpu_count
from crossfuse.runtime.stage import Stage, StageRequest

__all__ = ["best_target", "open_stage", "runs_here", "target_of_bundle"]

_LOG = logging.getLogger(__name__)


def best_target(available: Iterable[str]) -> str:
    """The best of a bundle's targets that can run here.

    Raises:
        BundleError: none can.
    """
    names = sorted(set(available))
    known: list[Target] = []
    unusable: list[str] = []
    for name in names:
        try:
            known.append(TARGETS[name])
        except KeyError:
            unusable.append(f"{name}, which no installed package provides")
        except CrossfuseError as error:
            unusable.append(f"{name}: {error}")
    for target in sorted(known, key=lambda one: -one.rank):
        if _runs(target):
            _LOG.debug("target %s, of %s", target.name, ", ".join(names))
            return target.name
    raise BundleError(
        "no target of the bundle can run here",
        got=", ".join([*(target.name for target in known), *unusable]) or "no targets",
        do="Install an engine (pip install 'crossfuse[cpu]' or 'crossfuse[gpu]'), or build another "
        "target",
    )


def runs_here(target: str) -> bool:
    """The target's own engine is installed, and the GPU that it needs is there."""
    found = TARGETS.get(target)
    return found is not None and _runs(found)


def _runs(target: Target) -> bool:
    return target.missing() is None and (not target.needs_gpu or gpu_count() > 0)


def target_of_bundle(name: str, package: str = "") -> Target:
    """A target that a bundle holds.

    Args:
        name: of the target.
        package: that provides it, as the bundle says; "" where it is built in.

    Raises:
        BundleError: it is not known here.
    """
    found = TARGETS.get(name)
    if found is None:
        raise BundleError(
            "no installed package provides this target of the bundle",
            got=repr(name),
            expected=f"package {package!r}, which the bundle names" if package else None,
            do="Install the package that provides it, if you trust it; or use another target",
        )
    return found


def open_stage(request: StageRequest) -> Stage:
    """Open one stage's graph on its target's engine.

    Raises:
        BundleError: the engine is not installed, or can't execute this graph here.
    """
    if request.target.opener is not None:
        return _open_by_its_own(request)
    if request.target.engine is not None:
        return _open_engine(request)
    if request.target.compiles and request.options.provider is None:
        return _open_on_openvino(request)
    return _open_on_onnxruntime(request)


def _open_by_its_own(request: StageRequest) -> Stage:
    """By a target's own opener, which is somebody else's code."""
    target = request.target
    missing = target.missing()
    if missing is not None:
        raise BundleError(
            f"target {target.name!r} needs {missing}, which is not installed", do=target.install
        )
    who = f"the opener of target {target.name!r}"
    with blaming(f"{who} raised", where=request.graph.name, kind=BundleError):
        stage = resolve(target.opener or "", who)(request)
    if not isinstance(stage, Stage):
        raise BundleError(
            f"{who} gives no stage", got=repr(stage), expected="crossfuse.runtime.stage.Stage"
        )
    return stage


def _open_engine(request: StageRequest) -> Stage:
    if request.engine is None:
        raise BundleError(
            "the manifest says nothing about the engine",
            where=request.graph.name,
            do="Build the target again",
        )
    from crossfuse.runtime.tensorrt_stage import TrtStage

    return TrtStage(request.graph, request.target.name, request.engine, request.options)


def _open_on_openvino(request: StageRequest) -> Stage:
    require_openvino(f"target {request.target.name!r}", BundleError)
    from crossfuse.runtime.openvino_stage import OpenVinoStage

    return OpenVinoStage(request)


def _open_on_onnxruntime(request: StageRequest) -> Stage:
    require_onnxruntime(f"target {request.target.name!r}", BundleError)
    from crossfuse.runtime.onnxruntime_stage import OrtStage

    provider = request.options.provider or request.target.provider
    return OrtStage(
        request.graph, provider, request.options, alone=request.alone, takes=request.takes
    )
