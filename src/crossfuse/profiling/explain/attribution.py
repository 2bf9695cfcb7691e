"""Where the time goes: per node, from the engine's own profiler, with what each node computes and
moves.

ONNX Runtime's profiler tells of every executed node its time and the shapes of its inputs and
outputs; floating-point operations and bytes are counted from those. An attention's kernel bears the
name of its site. Nodes that ONNX Runtime fused have new names, so the module is found by the
*output* that they share with the bundle's graph; that needs `onnx_ir`, and without it only sites
and kinds are known. TensorRT's profiler tells of every layer its time on the GPU and nothing of
shapes: there, too, only sites and kinds are known.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form, OneOf
from crossfuse.core.scratch import scratch_folder
from crossfuse.core.tensorrt_layers import Layer
from crossfuse.profiling.explain.work import KINDS, kind_of, work_of
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.tensorrt_stage import TrtStage

__all__ = [
    "NodeTime",
    "OpenedGraph",
    "StageTimes",
    "group",
    "module_pattern",
    "trace_engine",
    "trace_stage",
]

_SUFFIX = "_kernel_time"
_RUN = "model_run"
_BLOCKED = "_nchwc"
"""ONNX Runtime names a convolution in its blocked layout by the output that it had, and this."""


@dataclass(frozen=True)
class NodeTime(JsonData):
    """One executed node.

    Attributes:
        name: in the executed graph.
        op: its operator.
        kind: ``GEMM``, ``convolution``, ``attention``, ``norm``, ``activation``, ``element-wise``,
            ``copy`` or ``other``.
        module: path of the PyTorch module that it came from; empty where unknown.
        site: the attention that it is the kernel of.
        seconds: of one run, the mean over the middle half of the runs.
        flops, bytes: of one run; computed, and read and written.
    """

    name: str
    op: str
    kind: Annotated[str, OneOf((*KINDS, "other"))]
    module: str
    site: str | None
    seconds: float
    flops: int
    bytes: int


@dataclass(frozen=True)
class StageTimes(JsonData):
    """One stage's nodes.

    Attributes:
        stage: its name in the bundle.
        seconds: of a run as the engine's profiler saw it, nodes and what lies between them.
        nodes: in the order of execution.
        runs: that were traced.
    """

    __json__: ClassVar[Form] = Form(keys=("stage", "seconds", "runs", "nodes"))

    stage: str
    seconds: float
    nodes: tuple[NodeTime, ...]
    runs: int

    @property
    def between(self) -> float:
        """Seconds of a run that belong to no node."""
        return self.seconds - sum(node.seconds for node in self.nodes)


def group(nodes: Sequence[NodeTime], key: str) -> list[tuple[str, list[NodeTime]]]:
    """Nodes by ``kind``, ``site`` or ``module`` (by pattern), the most seconds first."""
    found: dict[str, list[NodeTime]] = defaultdict(list)
    for node in nodes:
        name = module_pattern(node.module) if key == "module" else getattr(node, key)
        if name is not None:
            found[name].append(node)
    return sorted(found.items(), key=lambda item: -sum(node.seconds for node in item[1]))


def module_pattern(path: str) -> str:
    """``layers.3.attention`` → ``layers.*.attention``: layers that repeat are one."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)


@dataclass(frozen=True)
class OpenedGraph:
    """A stage's graph file, and how the session that is profiled opened it.

    Attributes:
        path: of the file.
        provider: ONNX Runtime's execution provider.
        options: of the session.
        alone: whether the bundle has no other stage.
    """

    path: Path
    provider: str
    options: SessionOptions
    alone: bool = True


def trace_stage(
    stage: str,
    graph: OpenedGraph,
    feeds: Mapping[str, Any],
    *,
    runs: int = 20,
    sites: Sequence[str] = (),
) -> StageTimes:
    """Run a graph under ONNX Runtime's profiler, in a session of its own with the same settings.

    Args:
        stage: name for the result.
        graph: the stage's file and settings.
        feeds: the stage's inputs, arrays of the host or the device.
        runs: traced ones, after three that aren't.
        sites: names of the attentions.
    """
    with scratch_folder() as folder:
        engine = OrtStage(
            graph.path, graph.provider, graph.options, alone=graph.alone, trace=folder
        )
        for _ in range(runs + 3):
            engine.run_mixed(feeds)
        events = json.loads(engine.end_trace().read_text())
        executed = _executed(graph.path, folder / "optimized.onnx")
    return _summed(stage, events, executed, frozenset(sites), runs)


def trace_engine(
    stage: str,
    engine: TrtStage,
    feeds: Mapping[str, Any],
    *,
    runs: int = 20,
    sites: Sequence[str] = (),
) -> StageTimes:
    """Run a TensorRT engine under its library's profiler.

    A run's seconds are the sum of its layers', which were timed on the GPU; arguments as of
    :func:`trace_stage`.
    """
    times, layers = engine.time_layers(feeds, runs)
    known = frozenset(sites)
    each = len(times) // runs
    taken = [times[i * each : (i + 1) * each] for i in range(runs)]
    taken.sort(key=lambda run: sum(seconds for _, seconds in run))
    middle = taken[runs // 4 : runs - runs // 4]
    nodes = []
    for i, (name, _) in enumerate(middle[0]):
        layer = layers.get(name, Layer(name, "", ()))
        site = next((node for node in layer.nodes if node in known), None) if layer.fused else None
        seconds = sum(run[i][1] for run in middle) / len(middle)
        nodes.append(
            NodeTime(name, layer.kernel, _kind_of_layer(layer), site or "", site, seconds, 0, 0)
        )
    return StageTimes(stage, sum(node.seconds for node in nodes), tuple(nodes), runs)


def _kind_of_layer(layer: Layer) -> str:
    if layer.fused:
        return "attention"
    kinds = (
        ("GEMM", r"gemm|matmul|matrix"),
        ("convolution", r"conv"),
        ("norm", r"norm"),
        ("copy", r"move|reformat|shuffle|copy"),
    )
    text = f"{layer.kernel} {layer.kind}".lower()
    return next((kind for kind, pattern in kinds if re.search(pattern, text)), "other")


class _Executed(NamedTuple):
    """Names of executed nodes → paths of their modules, and → shapes of convolutions' weights."""

    modules: dict[str, str]
    kernels: dict[str, tuple[int, ...]]


def _summed(
    stage: str,
    events: Sequence[Mapping[str, Any]],
    known: _Executed,
    sites: frozenset[str],
    runs: int,
) -> StageTimes:
    """Means over the middle half of the last so many runs, by their total."""
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == _RUN][-runs:]
    spans.sort(key=lambda span: span[1] - span[0])
    quarter = len(spans) // 4
    middle = spans[quarter : len(spans) - quarter]
    executed = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_SUFFIX)]
    taken: dict[tuple[str, str], float] = defaultdict(float)
    seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for event in executed:
        if any(start <= event["ts"] < end for start, end in middle):
            key = event["name"].removesuffix(_SUFFIX), str(event["args"].get("node_index"))
            taken[key] += event["dur"]
            seen.setdefault(key, event["args"])
    nodes = []
    for key, args in seen.items():
        name, op = key[0], str(args["op_name"])
        flops, moved = work_of(op, args, known.kernels.get(name))
        site = name if name in sites else None
        module = known.modules.get(name, name if site else "")
        nodes.append(
            NodeTime(
                name, op, kind_of(op), module, site, taken[key] * 1e-6 / len(middle), flops, moved
            )
        )
    seconds = sum(end - start for start, end in middle) * 1e-6 / len(middle)
    return StageTimes(stage, seconds, tuple(nodes), runs)


def _executed(graph: Path, optimized: Path) -> _Executed:
    """The nodes of the graph that ONNX Runtime made of a file, known by the outputs that both
    have."""
    if find_spec("onnx_ir") is None:
        return _Executed({}, {})
    import onnx_ir as ir

    from crossfuse.graph.metadata import MODULE

    made_by = {o.name: node for node in ir.load(graph).graph for o in node.outputs}
    modules: dict[str, str] = {}
    kernels: dict[str, tuple[int, ...]] = {}
    before = ""
    for node in ir.load(optimized).graph:
        outputs = [*(str(o.name) for o in node.outputs), str(node.name).removesuffix(_BLOCKED)]
        # Changes of layout that ONNX Runtime inserts, and outputs that it renames, belong to what
        # they stand beside.
        source = next((made_by[name] for name in outputs if name in made_by), None)
        before = source.metadata_props.get(MODULE, "") if source is not None else before
        modules[str(node.name)] = before
        while kind_of(node.op_type) == "convolution" and source is not None:
            weight = source.inputs[1] if len(source.inputs) > 1 else None
            if (
                kind_of(source.op_type) == "convolution"
                and weight is not None
                and weight.const_value is not None
            ):
                kernels[str(node.name)] = tuple(weight.const_value.shape.numpy())
                break
            # An activation that was fused behind the convolution gave it its output.
            source = None if source.inputs[0] is None else source.inputs[0].producer()
    return _Executed(modules, kernels)
