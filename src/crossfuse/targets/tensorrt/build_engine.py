"""From lowered graphs to engines: asks the cache, then a worker, and says what each attention
became."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossfuse.core.processes import for_child
from crossfuse.core.scratch import scratch_folder
from crossfuse.core.target import Target, require_target
from crossfuse.core.tensorrt_layers import Layer, attention_kernels
from crossfuse.core.text import brief
from crossfuse.errors import EngineError
from crossfuse.targets.graph_files import save_graph
from crossfuse.targets.lowering import Lowered
from crossfuse.targets.tensorrt.engine_cache import engine_key, from_cache
from crossfuse.targets.tensorrt.libraries import (
    LIBRARY_VARIABLE,
    PROGRESS,
    RTX,
    library_of,
    library_version,
)
from crossfuse.targets.tensorrt.lowering import allow_decomposition
from crossfuse.targets.tensorrt.shape_profiles import InputShapes

__all__ = ["BuilderOptions", "Engine", "build_engine"]

_NOT_FUSED = "not supported by a dedicated kernel"


@dataclass(frozen=True)
class BuilderOptions:
    """How engines are built.

    Args:
        compute_capabilities: of the GPUs that the engine is for; with TensorRT, the one at hand.
        memory_limit: the builder's workspace, in bytes.
        optimization_level: the builder's, 0 to 5.
        lean: engines for the lean runtime, which other TensorRT versions of the same major can
            execute too.
    """

    compute_capabilities: tuple[str, ...] = ()
    memory_limit: int | None = None
    optimization_level: int | None = None
    lean: bool = False


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        kernels: what each attention became.
        reasons: of one that did not fuse, why.
        version: the library's.
        cached: it came from the cache.
        layers: of the engine.
    """

    kernels: Mapping[str, str]
    reasons: Mapping[str, str]
    version: str
    cached: bool
    layers: Sequence[Layer] = ()


def build_engine(
    target: str,
    stage: str,
    lowered: Lowered,
    plan: Path,
    profiles: Sequence[InputShapes],
    options: BuilderOptions,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Build one stage's engine.

    Where the builder has no fused kernel for an attention, a second build, in which attentions may
    be taken apart, finds out for which; that engine is what ``plan`` holds then.

    Args:
        target: name of one whose artifacts are engines.
        stage: its name, for progress.
        lowered: the graph, by :func:`~crossfuse.targets.tensorrt.lowering.lower_tensorrt`.
        plan: the file to write.
        profiles: the shapes to build for.
        options: of the builder.
        progress: told what the builder does.

    Raises:
        InputError: the target has no engines.
        EngineError: the parser or the builder refuses the graph, or the builder crashed.
    """
    known = require_target(target)
    sites = {*lowered.kernels, *lowered.reasons}
    settings = {
        "library": library_of(known).module,
        "version": library_version(known),
        "profiles": [dict(shapes) for shapes in profiles],
        "options": asdict(options),
        "memory": "of the execution context's owner",
        "layers": "with the types of their operands",
    }
    with scratch_folder() as scratch:
        graph = scratch / f"{stage}.onnx"
        files = save_graph(lowered.model, graph, graph.with_suffix(".bin"))
        weights = {name: graph.parent / name for name in files}

        def make(plan: Path) -> dict[str, Any] | None:
            job = _Job(known, stage, graph, plan, profiles, options)
            result = _work(job, progress)
            if any(_NOT_FUSED in text for text in result["errors"]) and "layers" not in result:
                progress(f"{target}: {stage}: an attention has no fused kernel; finding out which")
                save_graph(allow_decomposition(lowered.model), graph, graph.with_suffix(".2.bin"))
                result = _work(job, progress)
            if "layers" not in result:
                _refuse(stage, result)
            return {"layers": result["layers"]}

        about, cached = from_cache(engine_key(graph, weights, settings), plan, make)
    assert about is not None
    layers = [_layer(layer) for layer in about["layers"]]
    kernels = attention_kernels(layers, sites)
    version = str(settings["version"])
    reasons = {
        site: lowered.reasons.get(site) or _apart(site, layers) for site in sites - set(kernels)
    }
    return Engine(kernels, reasons, version, cached, layers)


@dataclass(frozen=True)
class _Job:
    """One engine for a worker."""

    target: Target
    stage: str
    graph: Path
    plan: Path
    profiles: Sequence[InputShapes]
    options: BuilderOptions

    def request(self) -> str:
        """What the worker reads."""
        engine = {
            "name": self.stage,
            "graph": str(self.graph),
            "plan": str(self.plan),
            "profiles": [dict(shapes) for shapes in self.profiles],
        }
        return json.dumps({"engines": [engine], "options": asdict(self.options)})

    def environment(self) -> dict[str, str]:
        """What the worker's process finds there."""
        library = library_of(self.target).module
        return {
            **for_child(),
            LIBRARY_VARIABLE: library,
            "POLYGRAPHY_USE_TENSORRT_RTX": str(int(library == RTX)),
        }


def _work(job: _Job, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run a worker for one engine."""
    request, result = job.graph.with_suffix(".request.json"), job.graph.with_suffix(".result.json")
    request.write_text(job.request())
    # -P: the working folder may be a stranger's, and is no place to import from.
    command = [
        sys.executable,
        "-P",
        "-m",
        "crossfuse.targets.tensorrt.worker",
        str(request),
        str(result),
    ]
    process = subprocess.Popen(
        command,
        env=job.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    output: list[str] = []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(PROGRESS):
                at = json.loads(line.removeprefix(PROGRESS))
                phase = f"{at['phase']} {at['step']}/{at['steps']}"
                progress(f"{job.target.name}: {at['engine']}: {phase}")
            elif line.strip():
                output.append(line.strip())
    if process.returncode or not result.exists():
        raise EngineError(
            "the engine builder crashed",
            where=job.stage,
            got=f"exit status {process.returncode}; "
            f"{output[-1][:300] if output else 'it said nothing'}",
            do="A smaller graph may tell what it stumbles over; the other targets don't need the "
            "builder",
        )
    engine: dict[str, Any] = json.loads(result.read_text())["engines"][0]
    return engine


def _layer(about: Mapping[str, Any]) -> Layer:
    """A layer as a worker tells of it."""
    nodes, inputs, constants = (tuple(about[name]) for name in ("nodes", "inputs", "constants"))
    return Layer(about["kernel"], about["kind"], nodes, inputs, constants)


def _refuse(stage: str, result: Mapping[str, Any]) -> None:
    parse_errors = result.get("parse_errors") or []
    if parse_errors:
        first = parse_errors[0]
        raise EngineError(
            f"TensorRT can't parse the graph: {brief(first['text'])}",
            where=f"{stage}, node {first['node']}",
        )
    errors = result["errors"]
    raise EngineError(
        f"TensorRT can't build the engine: {brief(errors[0]) if errors else 'it gave no reason'}",
        where=stage,
    )


def _apart(site: str, layers: Sequence[Layer]) -> str:
    found = dict.fromkeys(layer.kernel for layer in layers if site in layer.nodes)
    return (
        "TensorRT has no fused kernel for it and took it apart "
        f"({', '.join(found) or 'no layer of its own'})"
    )
