"""Where does a target leave its tolerance? Bisection over the attentions, two or three tensors at a
time.

Attentions are ordered as the graph computes them. A prefix of them is judged by its *last*
attentions, those whose results no other attention of the prefix uses: a fault anywhere in the
prefix reaches them, so whether a prefix is faulty is monotonic, and the first faulty attention is
found in log2 of their number. One evaluation more looks at the module outputs between it and the
attentions before it.

The truth is the fused graph in fp32, executed in its portable form; what a tensor's error may be is
a small multiple of the error that the fused graph itself has in the target's precision, or in fp32
a multiple of the parity policy's floor. Engines are bisected through the graph that a CPU executes
in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.bundle.store import Bundle
from crossfuse.core.tensors import CONTEXTS
from crossfuse.graph.metadata import MODULE, attention_nodes, clone, site_of
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.report import EAGER_MULTIPLE, FLOORS, ParityReport, judged_as, output_error
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.graph_files import load_graph
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.simulate import simulate
from crossfuse.targets.precision.stages import half_stages
from crossfuse.targets.registry import lower, rehearsal, require_target

__all__ = ["Fault", "bisect", "stage_candidates", "telling_point"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Fault:
    """What a bisection found.

    Attributes:
        site: the first attention beyond its tolerance, or None where only what comes after the last
            one is.
        module: the first module whose output is, at or before that attention; None where it is the
            attention itself.
        error, tolerance: largest error there, and what it may be.
        evaluations: how many times the target was executed.
    """

    site: str | None
    module: str | None
    error: float
    tolerance: float
    evaluations: int

    def sentence(self) -> str:
        """For people."""
        where = f"attention {self.site}" if self.site else "what follows the last attention"
        within = f"; the first module beyond it is {self.module}" if self.module else ""
        return (
            f"the first difference is in {where}{within} (error {self.error:.3g}, tolerance "
            f"{self.tolerance:.3g}), found in "
            f"{self.evaluations} evaluations"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        finite = self.error if np.isfinite(self.error) else None
        about = {"site": self.site, "module": self.module, "evaluations": self.evaluations}
        return {**about, "error": finite, "tolerance": self.tolerance}


def bisect(
    fused: ir.Model,
    candidates: Mapping[str, ir.Model],
    point: ReferencePoint,
    precision: str,
    *,
    kept: Mapping[str, str] | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> Fault | None:
    """The first attention or module beyond its tolerance; None where no prefix, and no output, is.

    Args:
        fused: the whole fused graph, in fp32.
        candidates: the target's graphs by stage, as a CPU executes them.
        point: inputs with one query per context.
        precision: the target's.
        kept: nodes that the target keeps in fp32.
        step: told what is evaluated.
    """
    runner = _Runner(fused, candidates, point, precision, kept)
    sites = [node for node in attention_nodes(fused.graph) if runner.has(_tensor(node))]
    upstream = _upstream(fused.graph, sites)
    outputs = [value.name or "" for value in fused.graph.outputs if runner.has(value.name or "")]

    def faulty(count: int) -> bool:
        prefix = sites[:count]
        last = [n for n in prefix if not any(n in upstream[other] for other in prefix)]
        step(f"bisecting: {count} of {len(sites)} attentions")
        return runner.first_beyond([_tensor(node) for node in last]) is not None

    if not sites or not faulty(len(sites)):
        found = runner.first_beyond(outputs)
        if found is None:
            return None
        later = _modules_between(fused.graph, None, sites, runner)
        first = runner.first_beyond(later)
        name, error, tolerance = first or (None, *found[1:])
        return Fault(None, _module_of(fused.graph, name), error, tolerance, runner.evaluations)
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        if faulty(middle):
            bad = middle
        else:
            good = middle
    site = sites[bad - 1]
    between = _modules_between(fused.graph, site, sites[: bad - 1], runner)
    first = runner.first_beyond([*between, _tensor(site)])
    assert first is not None
    name, error, tolerance = first
    module = None if name == _tensor(site) else _module_of(fused.graph, name)
    return Fault(site_of(site) or site.name, module, error, tolerance, runner.evaluations)


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
    """
    entry, known = bundle.target(target), require_target(target)
    if not known.engine:
        graphs = {stage: load_graph(bundle, file) for stage, file in entry.stages.items()}
        return (
            graphs
            if known.simulates
            else {stage: simulate(graph) for stage, graph in graphs.items()}
        )
    graphs = dict(fused_stages)
    if entry.precision != "fp32":
        graphs = dict(
            half_stages(graphs, entry.precision, keep=entry.kept, half_frontier=True).graphs
        )
    return {stage: rehearsal(graph, known) for stage, graph in graphs.items()}


def telling_point(
    report: ParityReport, reference: ReferenceSet, shared_batch: str | None
) -> ReferencePoint:
    """The first point where parity fails, among those with one query per context; the first of
    these where it holds."""
    points = {
        i: p
        for i, p in enumerate(reference.points)
        if shared_batch is None or p.sizes[shared_batch] == p.sizes[CONTEXTS]
    }
    return next((points[i] for i in report.failing if i in points), next(iter(points.values())))


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
        self.truth = lower(fused, "onnx").model
        self.rounded: ir.Model | None = None
        if precision != "fp32":
            self.rounded = lower(
                simulate(cast_graph(fused, judged_as(precision), keep=kept).model), "onnx"
            ).model
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

    def first_beyond(self, names: Sequence[str]) -> tuple[str, float, float] | None:
        """The first tensor, in the order given, that is beyond its tolerance; one evaluation."""
        if not names:
            return None
        self.evaluations += 1
        expected, got = self._whole(self.truth, names), self._got(names)
        rounded = None if self.rounded is None else self._whole(self.rounded, names)
        for name in names:
            tolerance = self.floor * float(np.max(np.abs(expected[name]), initial=0.0))
            if rounded is not None:
                noise = EAGER_MULTIPLE * output_error(rounded[name], expected[name])
                tolerance = max(noise, tolerance) if np.isfinite(noise) else tolerance
            error = output_error(np.asarray(got[name], expected[name].dtype), expected[name])
            if error > tolerance:
                return name, error, tolerance
        return None

    def _whole(self, model: ir.Model, names: Sequence[str]) -> Arrays:
        inputs = {value.name for value in model.graph.inputs}
        return _values(model, names, {k: v for k, v in self.point.inputs.items() if k in inputs})

    def _got(self, names: Sequence[str]) -> Arrays:
        found: Arrays = {}
        for stage, graph in self.candidates.items():
            wanted = [name for name in names if self.stage_of[name] == stage]
            if not wanted:
                continue
            given = {**self.point.inputs, **(self._handed_over() if stage == "query" else {})}
            found |= _values(graph, wanted, given)
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
    model = clone(model)
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


def _module_of(graph: ir.Graph, tensor: str | None) -> str | None:
    for node in graph:
        if tensor is not None and any(value.name == tensor for value in node.outputs):
            return node.metadata_props.get(MODULE) or node.name
    return None
