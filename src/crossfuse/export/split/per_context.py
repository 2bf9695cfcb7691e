"""In a query stage, what there is one of per context: read and repeated where it has to be.

Contexts and queries shared one batch dimension. In the query stage there are fewer contexts than
queries, so what nodes of the context read of that dimension is the number of contexts
(`read_sizes_per_context`), and what they make is repeated where it meets queries
(`repeat_where_they_meet`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from crossfuse.export.split.dependence import READS_SIZES, Content, sizes_read
from crossfuse.export.split.stage_sizes import SizeReader
from crossfuse.graph.attention_node import AttentionNode, is_attention, role_at
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dim_of, dims_of

__all__ = ["Batches", "QueryStage", "read_sizes_per_context", "repeat_where_they_meet"]


@dataclass(frozen=True)
class Batches:
    """The batch dimensions of contexts and queries.

    Attributes:
        shared: of contexts and queries alike in the whole graph, the queries' own in the query
            stage; None where they shared none.
        contexts: the contexts' own.
    """

    shared: str | None
    contexts: str

    def rename(self, value: ir.Value) -> None:
        """Write the contexts' dimension in place of the shared one."""
        if self.shared is None or value.shape is None:
            return
        dims = (dim_of(value, axis) for axis in range(len(value.shape)))
        value.shape = ir.Shape([self.contexts if dim == self.shared else dim for dim in dims])

    def context_axis(self, value: ir.Value | None) -> int | None:
        """The axis of a value that counts contexts, or None."""
        rank = len(value.shape) if value is not None and value.shape is not None else 0
        return next((axis for axis in range(rank) if dim_of(value, axis) == self.contexts), None)


@dataclass
class QueryStage:
    """A query stage that is being built.

    Attributes:
        graph: its graph, rewritten in place.
        batches: its batch dimensions.
        queries: its inputs that are the whole graph's.
        incoming: its inputs that come from the context stage.
        content: of values by name, whose content they depend on.
        needs: sizes that values were computed from.
        copies: values computed again with the number of contexts, so far.
        repeats: values repeated for each query, so far.
    """

    graph: ir.Graph
    batches: Batches
    queries: Sequence[ir.Value]
    incoming: Sequence[ir.Value]
    content: Mapping[str | None, Content]
    needs: Mapping[ir.Value, frozenset[str]] = field(default_factory=dict)
    copies: dict[ir.Value, ir.Value] = field(default_factory=dict)
    repeats: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def content_of(self, node: ir.Node) -> Content:
        """Whose content a node's results depend on."""
        return self.content.get(node.outputs[0].name, Content.NEUTRAL)

    @property
    def counted(self) -> ir.Value | None:
        """An incoming value that says how many contexts there are."""
        per_context = (v for v in self.incoming if self.batches.context_axis(v) is not None)
        return next(per_context, None)

    @property
    def asked(self) -> tuple[ir.Value, int]:
        """An input and its axis that say how many queries there are."""
        shared = self.batches.shared
        axes = ((value, dims_of(value) or []) for value in self.queries)
        return next((value, dims.index(shared)) for value, dims in axes if shared in dims)


def read_sizes_per_context(stage: QueryStage) -> None:
    """Give nodes of the context that read batch sizes the number of contexts.

    They get copies of the neutral nodes behind those sizes, as queries read the same nodes.
    """
    source = stage.counted
    if stage.batches.shared is None or source is None:
        return
    stage.needs = sizes_read(stage.graph)
    for node in list(stage.graph):
        if stage.content_of(node) != Content.CONTEXT:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and _reads_batch(stage, value):
                node.replace_input_with(index, _copy(stage, value, node, source))


def _reads_batch(stage: QueryStage, value: ir.Value) -> bool:
    """It is made of sizes and weights alone, the shared batch among them."""
    neutral = stage.content.get(value.name, Content.NEUTRAL) == Content.NEUTRAL
    return neutral and stage.batches.shared in stage.needs.get(value, frozenset())


def _copy(stage: QueryStage, value: ir.Value, before: ir.Node, source: ir.Value) -> ir.Value:
    """The value computed again with the number of contexts in place of the shared batch."""
    copies = stage.copies
    if value in copies or not _reads_batch(stage, value):
        return copies.get(value, value)
    node = value.producer()
    assert node is not None
    if node.op_type in READS_SIZES:
        counts = {stage.batches.shared or "": (source, stage.batches.context_axis(source) or 0)}
        reader = SizeReader([*stage.queries, *stage.incoming], counts)
        made = [reader.like(node)]
        reader.build.insert_before(before)
    else:
        inputs = [v if v is None else _copy(stage, v, before, source) for v in node.inputs]
        attributes = list(node.attributes.values())
        count = len(node.outputs)
        copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=count)
        stage.graph.insert_before(before, copy)
        made = list(copy.outputs)
    for old, new in zip(node.outputs, made, strict=True):
        new.shape, new.type = old.shape, old.type
        stage.batches.rename(new)
        copies[old] = new
    return copies[value]


def repeat_where_they_meet(stage: QueryStage) -> None:
    """Repeat what is per context for each of its queries where the two meet, except as an
    attention's keys, values and their masks: the operator fans out by itself."""
    for node in list(stage.graph):
        if Content.QUERY not in stage.content_of(node) or node.op_type == "Shape":
            continue
        per_context = _operands_per_context(stage, node)
        for index, value in enumerate(node.inputs):
            if value is None or index in per_context:
                continue
            if stage.batches.context_axis(value) is not None:
                node.replace_input_with(index, _repeat(stage, value, node))


def _operands_per_context(stage: QueryStage, node: ir.Node) -> frozenset[int]:
    """Operands of an attention that may stay one per context."""
    if not is_attention(node):
        return frozenset()
    attention = AttentionNode(node)
    if {stage.batches.context_axis(v) for v in (attention.key, attention.value)} != {0}:
        return frozenset()
    return frozenset(i for i in range(len(node.inputs)) if role_at(node, i) != "query")


def _repeat(stage: QueryStage, value: ir.Value, before: ir.Node) -> ir.Value:
    """The value with one entry per query in place of one per context, made once."""
    if value in stage.repeats:
        return stage.repeats[value]
    axis, source = stage.batches.context_axis(value), stage.counted
    assert source is not None
    assert value.shape is not None
    assert axis is not None
    build = GraphBuilder()
    dims = dims_of(value) or []
    batch = build.size(*stage.asked)
    fan_out = build.op("Div", batch, build.size(source, stage.batches.context_axis(source) or 0))
    apart = build.op("Unsqueeze", value, build.ints(axis + 1))
    ones = build.ints(*[1] * (axis + 1)), build.ints(*[1] * (len(dims) - axis - 1))
    wide = build.op("Expand", apart, build.concat(ones[0], fan_out, ones[1]))
    outer = build.op("Shape", value, start=0, end=axis)
    inner = build.op("Shape", value, start=axis + 1)
    result = build.op("Reshape", wide, build.concat(outer, batch, inner))
    dims[axis] = stage.batches.shared
    result.shape, result.type = ir.Shape(dims), value.type
    first = next((node for node in stage.graph if value in node.inputs), before)
    build.insert_before(first)
    stage.repeats[value] = result
    return result
