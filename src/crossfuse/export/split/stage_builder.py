"""Build the two stages of a split graph from copies of the whole one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from crossfuse.core.dimensions import symbols_in
from crossfuse.errors import InputError
from crossfuse.export.split.dependence import Content, Dependence, shape_window
from crossfuse.graph.metadata import clone, dim_of
from crossfuse.ops.contract import DOMAIN, NAME

__all__ = ["MissingSizeError", "StageBuilder"]


class StageBuilder:
    """Makes stages of a whole graph whose values all have names.

    Args:
        whole: the graph.
        dependence: of its values.
        frontier: value → its name on the way from one stage to the other.
        shared: the batch dimension of contexts and queries alike, or None.
        contexts: the contexts' own dimension.
    """

    def __init__(
        self,
        whole: ir.Model,
        dependence: Dependence,
        frontier: Mapping[ir.Value, str],
        shared: str | None,
        contexts: str,
    ) -> None:
        self.whole, self.frontier, self.shared, self.contexts = whole, frontier, shared, contexts
        self.content = {value.name: content for value, content in dependence.content.items()}
        self.needs = {value.name: needs for value, needs in dependence.needs.items()}
        self.context_inputs = {
            v.name for v in whole.graph.inputs if dependence.of(v) == Content.CONTEXT
        }

    def context_stage(self) -> ir.Model:
        """Context inputs → frontier."""
        model = clone(self.whole)
        graph = model.graph
        values = _by_name(graph)
        outputs = []
        for value, name in self.frontier.items():
            made = values[value.name]
            if not made.is_graph_input():
                # Not through an Identity: ONNX Runtime 1.31 loses the producer of some values when
                # it removes one.
                made.name = name
                outputs.append(made)
                continue
            identity = ir.node("Identity", [made])
            out = identity.outputs[0]
            out.name, out.shape, out.type = name, made.shape, made.type
            graph.append(identity)
            outputs.append(out)
        graph.outputs[:] = outputs
        RemoveUnusedNodesPass()(model)
        kept = [value for value in graph.inputs if value.name in self.context_inputs]
        self._read_sizes_off(
            graph, {value.name for value in graph.inputs} - self.context_inputs, kept
        )
        graph.inputs[:] = kept
        _finish(model)
        for value in _all_values(graph):
            self._rename(value)
        return model

    def query_stage(self) -> ir.Model:
        """Query inputs and frontier → outputs."""
        model = clone(self.whole)
        graph = model.graph
        values = _by_name(graph)
        queries = [value for value in graph.inputs if value.name not in self.context_inputs]
        arriving = []
        for value, name in self.frontier.items():
            old = values[value.name]
            new = ir.Value(name=name, shape=old.shape, type=old.type)
            self.content[name] = Content.CONTEXT
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = self._output(graph, new, old)
            old.replace_all_uses_with(new)
            arriving.append(new)
        for index, output in enumerate(graph.outputs):
            # Made of what arrives, and of the context alone: an output has the queries' batch all
            # the same.
            if (
                self.shared is not None
                and self.content.get(output.name) == Content.CONTEXT
                and output.producer()
            ):
                graph.outputs[index] = self._output(graph, output, output)
        for value in arriving:
            self._rename(value)
        late = [node for node in graph if self.content.get(node.outputs[0].name) == Content.CONTEXT]
        gone = {value.name for value in graph.inputs if value.name in self.context_inputs}
        gone |= {out.name for node in late for out in node.outputs}
        graph.inputs[:] = [*queries, *arriving]
        RemoveUnusedNodesPass()(model)
        self._evaluate_sizes_per_context(graph, arriving)
        self._read_sizes_off(graph, gone, [*queries, *arriving])
        RemoveUnusedNodesPass()(model)
        for node in graph:
            if self.content.get(node.outputs[0].name) == Content.CONTEXT:
                for out in node.outputs:
                    self._rename(out)
        if self.shared is not None:
            _Repeater(self, graph, queries, arriving).repeat_where_they_meet()
        _finish(model)
        return model

    def context_axis(self, value: ir.Value | None) -> int | None:
        """The axis of a value of the query stage that counts contexts, or None."""
        rank = len(value.shape) if value is not None and value.shape is not None else 0
        return next((axis for axis in range(rank) if dim_of(value, axis) == self.contexts), None)

    def _output(self, graph: ir.Graph, arriving: ir.Value, old: ir.Value) -> ir.Value:
        """An output of the whole graph that depends on the context alone is handed through."""
        identity = ir.node("Identity", [arriving])
        out = identity.outputs[0]
        out.name, out.shape, out.type = old.name, old.shape, old.type
        old.name = f"{old.name}_in_context"
        self.content[old.name] = Content.CONTEXT
        self.content[out.name] = Content.CONTEXT | Content.QUERY
        graph.append(identity)
        return out

    def _rename(self, value: ir.Value) -> None:
        if self.shared is None or value.shape is None:
            return
        dims = [
            self.contexts if dim_of(value, i) == self.shared else dim_of(value, i)
            for i in range(len(value.shape))
        ]
        value.shape = ir.Shape(dims)

    def _read_sizes_off(
        self, graph: ir.Graph, gone: set[str | None], there: list[ir.Value]
    ) -> None:
        """Let every ``Shape`` of a value that this stage lacks read values that it has."""
        for node in list(graph):
            if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].name not in gone:
                continue
            tape = Tape()
            parts = [self._size(tape, dim, there, node) for dim in shape_window(node)]
            result = (
                parts[0] if len(parts) == 1 else tape.op("Concat", parts, attributes={"axis": 0})
            )
            result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
            graph.insert_before(node, tape.nodes)
            node.outputs[0].replace_all_uses_with(result)

    def _size(
        self, tape: Tape, dim: int | str | None, there: list[ir.Value], node: ir.Node
    ) -> ir.Value:
        if isinstance(dim, int):
            return tape.op("Constant", [], attributes={"value_ints": [dim]})
        for value in there:
            for axis in range(len(value.shape or ())):
                if dim is not None and dim_of(value, axis) == dim:
                    return tape.op("Shape", [value], attributes={"start": axis, "end": axis + 1})
        raise MissingSizeError(dim, node.inputs[0].name if node.inputs[0] is not None else "")

    def _evaluate_sizes_per_context(self, graph: ir.Graph, arriving: list[ir.Value]) -> None:
        """What late nodes read of batch sizes is the number of contexts: give them copies of the
        neutral nodes behind it."""
        source = next((v for v in arriving if self.context_axis(v) is not None), None)
        if self.shared is None or source is None:
            return
        made: dict[ir.Value, ir.Value] = {}
        for node in list(graph):
            if self.content.get(node.outputs[0].name) != Content.CONTEXT:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and self._reads_batch(value):
                    node.replace_input_with(index, self._copy(graph, value, node, source, made))

    def _reads_batch(self, value: ir.Value) -> bool:
        neutral = self.content.get(value.name, Content.NEUTRAL) == Content.NEUTRAL
        return neutral and self.shared in self.needs.get(value.name, frozenset())

    def _copy(
        self,
        graph: ir.Graph,
        value: ir.Value,
        before: ir.Node,
        source: ir.Value,
        made: dict[ir.Value, ir.Value],
    ) -> ir.Value:
        if value in made or not self._reads_batch(value):
            return made.get(value, value)
        node = value.producer()
        assert node is not None
        if node.op_type == "Shape" and [symbols_in(d) for d in shape_window(node)] == [
            {self.shared}
        ]:
            axis = self.context_axis(source) or 0
            copy = ir.node("Shape", [source], attributes={"start": axis, "end": axis + 1})
        else:
            inputs = [
                v if v is None else self._copy(graph, v, before, source, made) for v in node.inputs
            ]
            attributes = list(node.attributes.values())
            copy = ir.Node(
                node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs)
            )
        graph.insert_before(before, copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.shape, new.type = old.shape, old.type
            made[old] = new
        return made[value]


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


class _Repeater:
    """Repeats what is per context where it meets queries, except as an attention's keys, values and
    their masks."""

    def __init__(
        self,
        stage: StageBuilder,
        graph: ir.Graph,
        queries: list[ir.Value],
        arriving: list[ir.Value],
    ) -> None:
        self.stage, self.graph = stage, graph
        self.query = next(v for v in queries if dim_of(v, 0) == stage.shared)
        self.source = next((v for v in arriving if stage.context_axis(v) is not None), None)
        self.repeated: dict[ir.Value, ir.Value] = {}

    def repeat_where_they_meet(self) -> None:
        """Rewrite the graph in place."""
        for node in list(self.graph):
            if Content.QUERY not in self.stage.content.get(node.outputs[0].name, Content.NEUTRAL):
                continue
            own = self._own_batch(node)
            for index, value in enumerate(node.inputs):
                if value is None or node.op_type == "Shape" or index in own:
                    continue
                if self.stage.context_axis(value) is not None:
                    node.replace_input_with(index, self._repeat(value, node))

    def _own_batch(self, node: ir.Node) -> set[int]:
        """Operands of an attention that may stay one per context."""
        if (node.domain, node.op_type) != (DOMAIN, NAME):
            return set()
        key, value = node.inputs[1:3]
        if self.stage.context_axis(key) == self.stage.context_axis(value) == 0:
            return {1, 2, 3, 4, 5}
        return set()

    def _repeat(self, value: ir.Value, before: ir.Node) -> ir.Value:
        if value in self.repeated:
            return self.repeated[value]
        axis = self.stage.context_axis(value)
        assert self.source is not None
        assert value.shape is not None
        assert axis is not None
        tape = Tape()
        dims = [dim_of(value, i) for i in range(len(value.shape))]
        counted = self.stage.context_axis(self.source) or 0
        batch = tape.op("Shape", [self.query], attributes={"start": 0, "end": 1})
        contexts = tape.op(
            "Shape", [self.source], attributes={"start": counted, "end": counted + 1}
        )
        fan_out = tape.op("Div", [batch, contexts])
        apart = tape.op("Unsqueeze", [value, _ints(tape, [axis + 1])])
        ones = [_ints(tape, [1] * (axis + 1)), fan_out, _ints(tape, [1] * (len(dims) - axis - 1))]
        wide = tape.op("Expand", [apart, tape.op("Concat", ones, attributes={"axis": 0})])
        before_it = tape.op("Shape", [value], attributes={"start": 0, "end": axis})
        after_it = tape.op("Shape", [value], attributes={"start": axis + 1})
        shape = tape.op("Concat", [before_it, batch, after_it], attributes={"axis": 0})
        result = tape.op("Reshape", [wide, shape])
        dims[axis] = self.stage.shared
        result.shape, result.type = ir.Shape(dims), value.type
        first = next((node for node in self.graph if value in node.inputs), before)
        self.graph.insert_before(first, tape.nodes)
        self.repeated[value] = result
        return result


def _ints(tape: Tape, values: list[int]) -> ir.Value:
    value: ir.Value = tape.op(
        "Constant", [], attributes={"value": ir.tensor(np.array(values, np.int64))}
    )
    return value


def _by_name(graph: ir.Graph) -> dict[str | None, ir.Value]:
    return {value.name: value for value in _all_values(graph)}


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(out for node in graph for out in node.outputs)]


def _finish(model: ir.Model) -> None:
    RemoveUnusedNodesPass()(model)
