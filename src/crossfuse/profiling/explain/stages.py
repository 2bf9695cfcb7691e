"""Where the time of a session's stages goes, by the profiler of whatever engine executes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from crossfuse.bundle.store import Bundle
from crossfuse.core.tensors import names_of
from crossfuse.profiling.explain.attribution import (
    OpenedGraph,
    StageTimes,
    trace_engine,
    trace_stage,
)
from crossfuse.profiling.explain.openvino_times import trace_openvino
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.openvino_stage import OpenVinoStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.runtime.tensorrt_stage import TrtStage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["context_inputs", "stage_times"]


def stage_times(
    bundle: Bundle,
    session: Session,
    options: SessionOptions,
    inputs: Mapping[str, NDArray[Any]],
    progress: Callable[[str], None],
) -> Iterator[StageTimes]:
    """Of each stage whose engine has a profiler.

    Args:
        bundle: that the session is of.
        session: open.
        options: that it was opened with.
        inputs: of the whole.
        progress: told what begins.
    """
    entry = bundle.target(session.target)
    feeds: dict[str, Any] = dict(inputs)
    if session.split:
        feeds |= session.encode(context_inputs(session, inputs)).tensors
    sites = [row.site for row in bundle.ledger]
    for name in ("model", "context", "query"):
        if name in entry.stages:
            progress(f"where the time goes: {name}")
            given = {spec.name: feeds[spec.name] for spec in session.stages[name].inputs}
            engine = session.engine(name)
            if isinstance(engine, TrtStage):
                if engine.times_layers:
                    yield trace_engine(name, engine, given, sites=sites)
            elif isinstance(engine, OpenVinoStage):
                yield trace_openvino(name, engine, given, sites=sites)
            elif isinstance(engine, OrtStage):
                graph = OpenedGraph(
                    bundle.path / entry.stages[name],
                    session.provider,
                    options,
                    alone=len(entry.stages) == 1,
                )
                yield trace_stage(name, graph, given, sites=sites)


def context_inputs(session: Session, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Those of the inputs that the context stage takes."""
    return {name: inputs[name] for name in names_of(session.stages["context"].inputs)}
