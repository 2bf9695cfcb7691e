"""Run a graph once on ONNX Runtime's CPU provider, for checks that happen while building."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.core.onnx_runtime import onnxruntime
from crossfuse.core.scratch import scratch_folder
from crossfuse.targets.graph_files import save_graph

__all__ = ["opened", "run_once"]

Runner = Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]


def run_once(model: ir.Model, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs in the graph's order; the model's weights are written aside for the run, so give a
    clone."""
    with opened(model) as run:
        return run(inputs)


@contextmanager
def opened(model: ir.Model) -> Iterator[Runner]:
    """A function that runs the graph; the model's weights are written aside meanwhile, so give a
    clone."""
    ort = onnxruntime()
    with scratch_folder() as folder:
        graph = folder / "graph.onnx"
        save_graph(model, graph, graph.with_suffix(".bin"))
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        session = ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])

        def run(inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            results: list[NDArray[Any]] = session.run(None, dict(inputs))
            return results

        yield run
