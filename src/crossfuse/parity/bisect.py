"""Where does a target leave its tolerance?

Bisection over the attentions, two or three tensors at a time.

Attentions are ordered as the graph computes them. A prefix of them is judged by its *last*
attentions, those whose results no other attention of the prefix uses: a difference anywhere in the
prefix reaches them, so whether a prefix diverges is monotonic, and the first attention that does is
found in log2 of their number. One evaluation more looks at the module outputs between it and the
attentions before it.

The truth is the fused graph in fp32, executed in its portable form; what a tensor's error may be is
a small multiple of the error that the fused graph itself has in the target's precision, in fp32 a
multiple of the parity policy's floor, and in low precision what the policy for it allows an output.
Engines are bisected through the graph that a CPU executes in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle
from crossfuse.core.target import LOW_PRECISIONS, require_target
from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import InputError
from crossfuse.graph.attention_node import attention_nodes
from crossfuse.graph.metadata import MODULE, site_of
from crossfuse.parity.low_precision import PLAIN
from crossfuse.parity.policy import EAGER_MULTIPLE, FLOORS, judged_as, output_error
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.report import Divergence, ParityReport
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.graph_files import load_graph
from crossfuse.targets.portable import lower_portable
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.simulate import simulate
from crossfuse.targets.precision.stages import half_stages
from crossfuse.targets.registry import cpu_equivalent

__all__ = ["bisect", "bisection_point", "stage_candidates"]

Arrays = dict[str, NDArray[Any]]

_PEAK = 6.0
"""How many times its RMS the largest of many rounding errors may be."""


def bisect(
    fused: ir.Model,
    candidates: Mapping[str, ir.Model],
    point: ReferencePoint,
    precision: str,
    *,
    kept: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Divergence | None:
    """The first attention or module beyond its tolerance; None where no prefix, and no output, is.

    Args:
        fused: the whole fused graph, in fp32.
        candidates: the target's graphs by stage, as a CPU executes them.
        point: inputs with one query per context.
        precision: the target's.
        kept: nodes that the target keeps in fp32.
        progress: told what is evaluated.
    """
    runner = _Runner(fused, candidates, point, precision, kept)
    sites = [node for node in attention_nodes(fused.graph) if runner.has(_tensor(node))]
    upstream = _upstream(fused.graph, sites)
    outputs = [value.name or "" for value in fused.graph.outputs if runner.has(value.name or "")]

    def diverges(count: int) -> bool:
        prefix = sites[:count]
        last = [n for n in prefix if not any(n in upstream[other] for other in prefix)]
        progress(f"bisecting: {count} of {len(sites)} attentions")
        return runner.first_beyond([_tensor(node) for node in last]) is not None

    if not sites or not diverges(len(sites)):
        found = runner.first_beyond(outputs)
        if found is None:
            return None
        first = runner.first_beyond(_modules_between(fused.graph, None, sites, runner))
        module = None if first is None else _module_of(fused.graph, first.tensor)
        worst = first or found
        return Divergence(None, module, worst.error, worst.tolerance, runner.evaluations)
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        if diverges(middle):
            bad = middle
        else:
            good = middle
    site = sites[bad - 1]
    between = _modules_between(fused.graph, site, sites[: bad - 1], runner)
    first = runner.first_beyond([*between, _tensor(site)])
    assert first is not None
    module = None if first.tensor == _tensor(site) else _module_of(fused.graph, first.tensor)
    return Divergence(
        site_of(site) or site.name, module, first.error, first.tolerance, runner.evaluations
    )


def stage_candidates(
    bundle: Bundle, target: str, fused_stages: Mapping[str, ir.Model]
) -> dict[str, ir.Model]:
    """A target's graphs, as a CPU executes them.

    Args:
        bundle: holds the target.
        target: its name.
        fused_stages: the fused graphs of its stages, for targets whose artifact is an engine.

    Raises:
        BundleError: a damaged file.
        InputError: an engine in low precision, which no graph stands for.
    """
    entry, known = bundle.target(target), require_target(target)
    if known.engine is not None and entry.precision in LOW_PRECISIONS:
        raise InputError(
            "an engine in low precision can't be bisected: the bundle holds no graph of it",
            where=target,
            do="Build the same precision of ort-cpu or openvino, and bisect that",
        )
    if known.artifact_on_cpu or entry.precision in LOW_PRECISIONS:
        graphs = {stage: load_graph(bundle, file) for stage, file in entry.stages.items()}
        return (
            graphs
            if known.simulates or entry.precision in LOW_PRECISIONS
            else {stage: simulate(graph) for stage, graph in graphs.items()}
        )
    graphs = dict(fused_stages)
    if entry.precision != "fp32":
        half = half_stages(
            graphs, entry.precision, keep=entry.kept, half_handover=known.hands_over_half
        )
        graphs = dict(half.graphs)
    return {stage: cpu_equivalent(graph, known) for stage, graph in graphs.items()}


def bisection_point(
    report: ParityReport, reference: ReferenceSet, shared_batch: str | None
) -> ReferencePoint:
    """The first point where parity fails, among those with one query per context.

    Where parity holds, the first of these.
    """
    points = {
        i: p
        for i, p in enumerate(reference.points)
        if shared_batch is None or p.sizes[shared_batch] == p.sizes[CONTEXTS]
    }
    return next((points[i] for i in report.failing if i in points), next(iter(points.values())))


class _Beyond(NamedTuple):
    """A tensor beyond its tolerance."""

    tensor: str
    error: float
    tolerance: float


class _Runner:
    """Executes prefixes of the target and of the truth, and compares tensors of the same name."""

    def __init__(
        self,
        fused: ir.Model,
        candidates: Mapping[str, ir.Model],
        point: ReferencePoint,
        precision: str,
        kept: Mapping[str, str] | None,
    ) -> None:
        self.truth = lower_portable(fused).model
        self.rounded: ir.Model | None = None
        self.low = precision in LOW_PRECISIONS
        if precision != "fp32" and not self.low:
            cast = cast_graph(fused, judged_as(precision), keep=kept).model
            self.rounded = lower_portable(simulate(cast)).model
        self.candidates = {stage: graph for stage, graph in candidates.items() if stage != "step"}
        self.point = point
        self.floor = EAGER_MULTIPLE * FLOORS["fp32"]
        self.evaluations = 0
        names = {value.name for node in self.truth.graph for value in node.outputs}
        self.stage_of: dict[str, str] = {}
        for stage, graph in self.candidates.items():
            for node in graph.graph:
                self.stage_of |= {v.name: stage for v in node.outputs if v.name and v.name in names}
        self.frontier: Arrays | None = None

    def has(self, name: str) -> bool:
        """The tensor exists in both."""
        return name in self.stage_of

    def first_beyond(self, names: Sequence[str]) -> _Beyond | None:
        """The first tensor, in the order given, that is beyond its tolerance; one evaluation."""
        if not names:
            return None
        self.evaluations += 1
        expected, got = self._whole(self.truth, names), self._got(names)
        rounded = None if self.rounded is None else self._whole(self.rounded, names)
        for name in names:
            tolerance = self._floor(expected[name])
            if rounded is not None:
                noise = EAGER_MULTIPLE * output_error(rounded[name], expected[name])
                tolerance = max(noise, tolerance) if np.isfinite(noise) else tolerance
            error = output_error(np.asarray(got[name], expected[name].dtype), expected[name])
            if error > tolerance:
                return _Beyond(name, error, tolerance)
        return None

    def _floor(self, expected: NDArray[Any]) -> float:
        """What a tensor's error may be at least; in low precision the peak of an error that an
        output may have."""
        if self.low:
            squares = np.square(expected.astype(np.float64)).ravel()
            return _PEAK * PLAIN.relative_rms * float(squares.mean()) ** 0.5 if len(squares) else 0
        return self.floor * float(np.max(np.abs(expected), initial=0.0))

    def _whole(self, model: ir.Model, names: Sequence[str]) -> Arrays:
        inputs = {value.name for value in model.graph.inputs}
        return _values(model, names, {k: v for k, v in self.point.inputs.items() if k in inputs})

    def _got(self, names: Sequence[str]) -> Arrays:
        found: Arrays = {}
        for stage, graph in self.candidates.items():
            here = [name for name in names if self.stage_of[name] == stage]
            if not here:
                continue
            given = {**self.point.inputs, **(self._handed_over() if stage == "query" else {})}
            found |= _values(graph, here, given)
        return found

    def _handed_over(self) -> Arrays:
        """What the target's context stage gives, computed once."""
        if self.frontier is None:
            context = self.candidates["context"]
            self.frontier = _values(
                context, [v.name or "" for v in context.graph.outputs], self.point.inputs
            )
        return self.frontier


def _values(model: ir.Model, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Tensors inside a graph, computing no more than they need."""
    model = model.clone()
    by_name = {v.name: v for node in model.graph for v in node.outputs} | {
        v.name: v for v in model.graph.inputs
    }
    model.graph.outputs.clear()
    needed: set[ir.Node] = set()
    todo = []
    for name in names:
        model.graph.outputs.append(by_name[name])
        producer = by_name[name].producer()
        todo += [] if producer is None else [producer]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    for node in reversed([n for n in model.graph if n not in needed]):
        model.graph.remove(node)
    for value in [v for v in model.graph.initializers.values() if not v.uses()]:
        del model.graph.initializers[value.name or ""]
    given = {
        value.name or "": _like(inputs[value.name or ""], value) for value in model.graph.inputs
    }
    return dict(zip(names, run_once(model, given), strict=True))


def _like(array: NDArray[Any], value: ir.Value) -> NDArray[Any]:
    return array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)


def _tensor(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _upstream(graph: ir.Graph, sites: Sequence[ir.Node]) -> dict[ir.Node, set[ir.Node]]:
    """Attention → the attentions whose results reach it."""
    reached: dict[ir.Node, set[ir.Node]] = {}
    chosen = set(sites)
    for node in graph:
        found: set[ir.Node] = set()
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer in reached:
                found |= reached[producer]
                if producer in chosen:
                    found.add(producer)
        reached[node] = found
    return {site: reached[site] for site in sites}


def _modules_between(
    graph: ir.Graph, site: ir.Node | None, before: Sequence[ir.Node], runner: _Runner
) -> list[str]:
    """The last tensor of each module that feeds a site (or the outputs) and comes after the
    attentions before it."""
    stop = {_tensor(node) for node in before}
    ends: Iterable[ir.Value | None] = graph.outputs if site is None else site.inputs
    seen: set[ir.Node] = set()
    todo = [p for v in ends if v is not None and (p := v.producer()) is not None]
    while todo:
        node = todo.pop()
        if node in seen or _tensor(node) in stop:
            continue
        seen.add(node)
        todo += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    last: dict[str, str] = {}
    for node in graph:
        name = _tensor(node)
        floats = node.outputs[0].dtype == ir.DataType.FLOAT
        if node in seen and floats and runner.has(name):
            module = node.metadata_props.get(MODULE, "")
            last.pop(module, None)
            last[module] = name
    return list(last.values())


def _module_of(graph: ir.Graph, tensor: str) -> str | None:
    for node in graph:
        if any(value.name == tensor for value in node.outputs):
            return node.metadata_props.get(MODULE) or node.name
    return None
