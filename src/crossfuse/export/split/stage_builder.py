"""Build the two stages of a split graph from copies of the whole one."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.split.dependence import Content, Dependence, shape_symbols
from crossfuse.export.split.per_context import (
    Batches,
    QueryStage,
    read_sizes_per_context,
    repeat_where_they_meet,
)
from crossfuse.export.split.stage_sizes import read_sizes_off

__all__ = ["StageBuilder"]


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
        queries = {value for value in graph.inputs if value.name not in self.context_inputs}
        read_sizes_off(graph, queries, kept)
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
        removed = {value for value in graph.inputs if value.name in self.context_inputs}
        incoming = self._take_in(graph)
        self._give_outputs_the_queries_batch(graph)
        removed |= {out for node in self._of_context(graph) for out in node.outputs}
        graph.inputs[:] = [*queries, *incoming]
        RemoveUnusedNodesPass()(model)
        # What is read of a size is read for the queries, and then again for what is per context.
        counting = {value for value in incoming if self._counts(value)}
        read_sizes_off(graph, removed | counting, [*queries, *incoming])
        for value in incoming:
            self.batches.rename(value)
        stage = QueryStage(graph, self.batches, queries, incoming, self.content)
        read_sizes_per_context(stage)
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

    def _counts(self, value: ir.Value) -> bool:
        """It has the batch that contexts and queries shared."""
        return self.batches.shared is not None and self.batches.shared in shape_symbols(value)

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


def _by_name(graph: ir.Graph) -> dict[str | None, ir.Value]:
    return {value.name: value for value in _all_values(graph)}


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(out for node in graph for out in node.outputs)]
