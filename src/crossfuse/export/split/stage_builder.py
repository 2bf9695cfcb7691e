"""Build the two stages of a split graph from copies of the whole one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from crossfuse.errors import InputError
from crossfuse.export.split.dependence import Content, Dependence, shape_window
from crossfuse.export.split.per_context import (
    Batches,
    QueryStage,
    read_sizes_per_context,
    repeat_where_they_meet,
)
from crossfuse.graph.shapes import dim_of

__all__ = ["MissingSizeError", "StageBuilder"]


class MissingSizeError(InputError):
    """A stage reads a size that none of its values has."""

    def __init__(self, dim: str | None, where: str | None) -> None:
        super().__init__(
            "the graph can't be split: a size is read off a tensor that is in the other stage",
            where=where,
            got=dim,
            do="Export without context inputs",
        )
        self.dim = dim


class StageBuilder:
    """Makes stages of a whole graph whose values all have names.

    Args:
        whole: the graph.
        dependence: of its values.
        frontier: value → its name on the way from one stage to the other.
        batches: the batch dimensions of contexts and queries.
    """

    def __init__(
        self,
        whole: ir.Model,
        dependence: Dependence,
        frontier: Mapping[ir.Value, str],
        batches: Batches,
    ) -> None:
        self.whole, self.frontier, self.batches = whole, frontier, batches
        self.content = {value.name: content for value, content in dependence.content.items()}
        self.needs = {value.name: needs for value, needs in dependence.needs.items()}
        self.context_inputs = {
            v.name for v in whole.graph.inputs if dependence.of(v) == Content.CONTEXT
        }

    def context_stage(self) -> ir.Model:
        """Context inputs → frontier.

        Raises:
            MissingSizeError: it reads a size that no context input has.
        """
        model = self.whole.clone()
        graph = model.graph
        values = _by_name(graph)
        graph.outputs[:] = [
            _as_output(graph, values[value.name], name) for value, name in self.frontier.items()
        ]
        RemoveUnusedNodesPass()(model)
        kept = [value for value in graph.inputs if value.name in self.context_inputs]
        queries = {value.name for value in graph.inputs} - self.context_inputs
        _read_sizes_off(graph, queries, kept)
        graph.inputs[:] = kept
        RemoveUnusedNodesPass()(model)
        for value in _all_values(graph):
            self.batches.rename(value)
        return model

    def query_stage(self) -> ir.Model:
        """Query inputs and frontier → outputs.

        Raises:
            MissingSizeError: it reads a size that none of these inputs has.
        """
        model = self.whole.clone()
        graph = model.graph
        queries = [value for value in graph.inputs if value.name not in self.context_inputs]
        incoming = self._take_in(graph)
        self._give_outputs_the_queries_batch(graph)
        for value in incoming:
            self.batches.rename(value)
        removed = {value.name for value in graph.inputs if value.name in self.context_inputs}
        removed |= {out.name for node in self._of_context(graph) for out in node.outputs}
        graph.inputs[:] = [*queries, *incoming]
        RemoveUnusedNodesPass()(model)
        stage = QueryStage(graph, self.batches, queries, incoming, self.content, self.needs)
        read_sizes_per_context(stage)
        _read_sizes_off(graph, removed, [*queries, *incoming])
        RemoveUnusedNodesPass()(model)
        for node in self._of_context(graph):
            for out in node.outputs:
                self.batches.rename(out)
        if self.batches.shared is not None:
            repeat_where_they_meet(stage)
        RemoveUnusedNodesPass()(model)
        return model

    def _take_in(self, graph: ir.Graph) -> list[ir.Value]:
        """New inputs in place of the frontier's values."""
        values = _by_name(graph)
        incoming = []
        for value, name in self.frontier.items():
            old = values[value.name]
            new = ir.Value(name=name, shape=old.shape, type=old.type)
            self.content[name] = Content.CONTEXT
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = self._output(graph, new, old)
            old.replace_all_uses_with(new)
            incoming.append(new)
        return incoming

    def _give_outputs_the_queries_batch(self, graph: ir.Graph) -> None:
        """Outputs made of what comes in, and of the context alone, have the queries' batch all the
        same."""
        if self.batches.shared is None:
            return
        for index, output in enumerate(graph.outputs):
            if self.content.get(output.name) == Content.CONTEXT and output.producer():
                graph.outputs[index] = self._output(graph, output, output)

    def _of_context(self, graph: ir.Graph) -> list[ir.Node]:
        """Nodes whose results depend on the context alone."""
        return [n for n in graph if self.content.get(n.outputs[0].name) == Content.CONTEXT]

    def _output(self, graph: ir.Graph, incoming: ir.Value, old: ir.Value) -> ir.Value:
        """An output of the whole graph that depends on the context alone is handed through."""
        out = _identity(graph, incoming, old.name)
        out.shape, out.type = old.shape, old.type
        old.name = f"{old.name}_in_context"
        self.content[old.name] = Content.CONTEXT
        self.content[out.name] = Content.CONTEXT | Content.QUERY
        return out


def _as_output(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """The value as an output of this name; an input goes through an Identity.

    No other value does: ONNX Runtime 1.31 loses the producer of some when it removes one.
    """
    if value.is_graph_input():
        return _identity(graph, value, name)
    value.name = name
    return value


def _identity(graph: ir.Graph, value: ir.Value, name: str | None) -> ir.Value:
    node = ir.node("Identity", [value])
    out = node.outputs[0]
    out.name, out.shape, out.type = name, value.shape, value.type
    graph.append(node)
    return out


def _read_sizes_off(
    graph: ir.Graph, removed: Collection[str | None], present: Sequence[ir.Value]
) -> None:
    """Let every ``Shape`` of a value that this stage lacks read values that it has."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source is None or source.name not in removed:
            continue
        tape = Tape()
        parts = [_size(tape, dim, present, source.name) for dim in shape_window(node)]
        result = parts[0] if len(parts) == 1 else tape.op("Concat", parts, attributes={"axis": 0})
        result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
        graph.insert_before(node, tape.nodes)
        node.outputs[0].replace_all_uses_with(result)


def _size(
    tape: Tape, dim: int | str | None, present: Sequence[ir.Value], where: str | None
) -> ir.Value:
    """A size, ``[1]`` int64, off the first value that has it."""
    if isinstance(dim, int):
        return tape.op("Constant", [], attributes={"value_ints": [dim]})
    for value in present:
        for axis in range(len(value.shape or ())):
            if dim is not None and dim_of(value, axis) == dim:
                return tape.op("Shape", [value], attributes={"start": axis, "end": axis + 1})
    raise MissingSizeError(dim, where)


def _by_name(graph: ir.Graph) -> dict[str | None, ir.Value]:
    return {value.name: value for value in _all_values(graph)}


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(out for node in graph for out in node.outputs)]
