"""Split a fused graph in two: what depends on context inputs alone, and the rest.

Rules:

1. Every node that depends on the content of context inputs alone goes to the context stage: K and V
projections included.
2. What both stages use of weights and sizes alone is computed in both.
3. The context stage's results are the *frontier*. A value that cheap operators (casts, reshapes,
   comparisons, broadcasts) make of another one is made again in the query stage, where the other
   one is on the frontier anyway or takes fewer bytes. Products are never made again.
4. Where context and queries share a batch dimension, the split releases it: there are ``contexts``
   contexts, and a multiple of that many queries. Keys, values and their masks stay one per context,
   as the operator fans out by itself; what meets queries elsewhere is repeated inside the query
   graph.
5. A result whose batch is no axis of its own, or that mixes the samples of a batch (`mixing`), is
kept whole: it is computed with the queries.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from crossfuse.core.dimensions import size_at
from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import InputError
from crossfuse.export.split.dependence import Content, Dependence
from crossfuse.export.split.mixing import Batch, mixing, no_axis_of_their_own
from crossfuse.export.split.per_context import Batches
from crossfuse.export.split.rows import joined_along
from crossfuse.export.split.shared_batch import shared_batch
from crossfuse.export.split.stage_builder import StageBuilder
from crossfuse.export.split.stage_sizes import MissingSizeError
from crossfuse.graph.attention_node import attentions
from crossfuse.graph.metadata import module_path
from crossfuse.graph.shapes import dim_of

__all__ = ["NothingToSplitError", "Split", "split"]

_log = logging.getLogger(__name__)

_CHEAP = frozenset(
    {
        *("Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Tile", "Identity"),
        *("Slice", "Not", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or"),
        *("Where", "Add", "Sub", "Mul", "Div"),
    }
)
"""Operators that are made again rather than kept, where what they are made of is smaller."""


@dataclass(frozen=True)
class Split:
    """Two stages.

    Attributes:
        context, query: the graphs.
        frontier: names of the tensors that go from one to the other.
        shared: the batch dimension of the whole graph that is now the queries' own, or None where
            there was none.
        kept: tensors made of the context alone that are computed with the queries, though that is
            no cheap repetition, with the reason.
    """

    context: ir.Model
    query: ir.Model
    frontier: tuple[str, ...]
    shared: str | None
    kept: Mapping[str, str]


class NothingToSplitError(InputError):
    """No stage of the context would be worth having.

    Args:
        why: in words.
        model: the whole graph.
        context: its context inputs.
        kept: tensors of the context that could not be computed apart from the queries, with the
            reason.
    """

    def __init__(
        self, why: str, model: ir.Model, context: Sequence[str], kept: Mapping[str, str]
    ) -> None:
        super().__init__(
            f"there is nothing to split: {why}",
            where=model.graph.name,
            got=", ".join(context),
            do="Export without context inputs",
        )
        self.kept = kept


def split(model: ir.Model, context: Sequence[str], sizes: Mapping[str, int]) -> Split:
    """Split a copy of the graph; weights are shared.

    Args:
        model: the fused graph.
        context: names of its context inputs.
        sizes: typical sizes of its dimensions, by which bytes are compared.

    Raises:
        NothingToSplitError: nothing can be computed from the context alone.
        MissingSizeError: a stage needs a size that it can't read.
    """
    whole = model.clone()
    NameFixPass()(whole)
    graph = whole.graph
    if all(value.name in context for value in graph.inputs):
        why = "every input is context, so no query is left to ask many of"
        raise NothingToSplitError(why, model, context, {})
    shared = shared_batch(graph, context)
    cut = _cut(graph, context, shared, sizes)
    if not any(value.producer() is not None for value in cut.frontier):
        why = "nothing is computed from the context inputs alone"
        raise NothingToSplitError(why, model, context, cut.kept)
    frontier = cut.frontier
    while True:
        names = _names(graph, frontier)
        builder = StageBuilder(whole, cut.dependence, names, Batches(shared, CONTEXTS))
        try:
            stages = builder.context_stage(), builder.query_stage()
        except MissingSizeError as error:
            frontier = [_with_size(graph, context, frontier, error, sizes), *frontier]
        else:
            _log.debug("the context stage hands over %s", ", ".join(names.values()))
            return Split(*stages, tuple(names.values()), shared, cut.kept)


class _Cut(NamedTuple):
    """What goes from the context stage to the query stage, the dependence that says so, and what
    is kept whole, with the reason."""

    dependence: Dependence
    frontier: Sequence[ir.Value]
    kept: Mapping[str, str]


def _cut(
    graph: ir.Graph, context: Collection[str], shared: str | None, sizes: Mapping[str, int]
) -> _Cut:
    """Cut so that contexts may have a batch of their own: what has no such batch is computed with
    the queries, which may move the cut, and so on."""
    batch = None if shared is None else Batch.of(graph, shared)
    kept_whole = mixing(graph, Dependence(graph, context), shared)
    while True:
        dependence = Dependence(graph, context, kept_whole)
        frontier = _frontier(graph, dependence, sizes)
        beyond = [*frontier, *_made_again(graph, dependence, frontier)]
        made = [value for value in beyond if value.producer() is not None]
        mixed = {} if batch is None else no_axis_of_their_own(made, batch)
        if not mixed:
            return _Cut(dependence, frontier, _reasons(graph, dependence, kept_whole))
        kept_whole |= mixed


def _reasons(
    graph: ir.Graph, dependence: Dependence, kept_whole: Mapping[ir.Value, str]
) -> dict[str, str]:
    """Why tensors made of the context alone are computed with the queries, by name; without those
    that are made of such tensors, and without cheap ones that only need a size of the queries."""
    found: dict[str, str] = {}
    for node in graph:
        if not any(dependence.of(v) == Content.CONTEXT for v in node.inputs):
            continue
        if not all(v is None or _is_early(dependence, v) for v in node.inputs):
            continue
        value = node.outputs[0]
        needs = dependence.needs.get(value, frozenset()) - dependence.sizes_of_context
        reason = kept_whole.get(value)
        if reason is None and needs and node.op_type not in _CHEAP:
            reason = f"it is computed with sizes of the queries: {', '.join(sorted(needs))}"
        if reason is not None:
            module = module_path(node)
            found[value.name or ""] = reason + (f" ({node.op_type} in {module})" if module else "")
    return found


def _is_early(dependence: Dependence, value: ir.Value) -> bool:
    return dependence.of(value) == Content.NEUTRAL or dependence.early(value)


def _with_size(
    graph: ir.Graph,
    context: Collection[str],
    frontier: Collection[ir.Value],
    error: MissingSizeError,
    sizes: Mapping[str, int],
) -> ir.Value:
    """The smallest context input with a size that the query stage reads: it is handed over for
    that.

    Raises:
        MissingSizeError: none has it.
    """
    have = [
        value
        for value in graph.inputs
        if value.name in context
        and value not in frontier
        and error.dim in [dim_of(value, axis) for axis in range(len(value.shape or ()))]
    ]
    if not have:
        raise error
    return min(have, key=lambda value: _bytes(value, sizes))


def _frontier(graph: ir.Graph, dependence: Dependence, sizes: Mapping[str, int]) -> list[ir.Value]:
    """Values of the context stage that the query stage, or an output, needs; in the graph's
    order."""
    needed: list[ir.Value] = []
    for node in graph:
        early = any(dependence.early(out) for out in node.outputs)
        if not early and dependence.of(node.outputs[0]) != Content.NEUTRAL:
            needed += [v for v in node.inputs if v is not None and dependence.early(v)]
    needed += [v for v in graph.outputs if dependence.early(v)]
    chosen = dict.fromkeys(needed)
    for value in list(chosen):
        source = _cheaper_source(value, chosen, dependence, sizes)
        if source is not value:
            del chosen[value]
            chosen[source] = None
    values = (*graph.inputs, *(out for node in graph for out in node.outputs))
    order = {value: place for place, value in enumerate(values)}
    return sorted(chosen, key=lambda value: order[value])


def _made_again(
    graph: ir.Graph, dependence: Dependence, frontier: Collection[ir.Value]
) -> list[ir.Value]:
    """Values of context content that the query stage computes: from the frontier on, or needing
    sizes of queries."""

    def of_context(values: Iterable[ir.Value | None]) -> list[ir.Value]:
        return [v for v in values if v is not None and dependence.of(v) == Content.CONTEXT]

    found: dict[ir.Value, None] = {}
    pending = of_context(graph.outputs)
    for node in graph:
        if Content.QUERY in dependence.of(node.outputs[0]):
            pending += of_context(node.inputs)
    while pending:
        value = pending.pop()
        producer = value.producer()
        if producer is None or value in frontier or value in found:
            continue
        found[value] = None
        pending += of_context(producer.inputs)
    return list(found)


def _cheaper_source(
    value: ir.Value, chosen: Collection[ir.Value], dependence: Dependence, sizes: Mapping[str, int]
) -> ir.Value:
    """The value itself, or one that cheap operators make it of and that costs less to keep."""
    best, current = value, value
    while True:
        node = current.producer()
        if node is None or node.op_type not in _CHEAP or node.domain:
            return best
        sources = [
            v
            for v in dict.fromkeys(node.inputs)
            if v is not None and dependence.of(v) == Content.CONTEXT
        ]
        if len(sources) != 1 or any(_is_large_weight(v) for v in node.inputs):
            return best
        current = sources[0]
        if current in chosen or _bytes(current, sizes) < _bytes(best, sizes):
            best = current


def _is_large_weight(value: ir.Value | None) -> bool:
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return tensor is not None and tensor.size > 16


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> float:
    if value.shape is None or value.dtype is None:
        return float("inf")
    total = float(value.dtype.itemsize)
    for axis in range(len(value.shape)):
        size = size_at(dim_of(value, axis), sizes)
        total *= float("inf") if size is None else size
    return total


def _names(graph: ir.Graph, frontier: Sequence[ir.Value]) -> dict[ir.Value, str]:
    """Frontier names that say what they are: ``SITE.key``, ``SITE.value``, or the value's own."""
    roles: dict[ir.Value, str] = {}
    for attention in attentions(graph):
        for role, value in attention.operands():
            if role != "query":
                # Of tokens that were joined, those in front are the context's.
                front = next(iter(joined_along(value, 1)), value)
                roles.setdefault(front, f"{attention.site}.{role}")
    names: dict[ir.Value, str] = {}
    for value in frontier:
        name = roles.get(value, value.name or "frontier")
        names[value] = f"context:{name}"
    return names
