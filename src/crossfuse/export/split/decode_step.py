"""From a query stage over whole token sequences to one that computes the next token alone, with
state.

Rules:

1. The token input becomes one token. Keys and values of attentions over the tokens become state of
   a fixed length: the new row is written at ``position``, and the attention sees the rows up to it.
2. What depends on the number of tokens but not on their content (positions, relative biases, causal
   masks) is computed for the full length, which is constant, and its row at ``position`` is taken.
3. Everything else works token by token and stays as it is.

It must not fire where an attention over the tokens sees later ones, where another input has a token
axis, or where a size that is merged with the token axis would have to be cut. That nothing else
mixes tokens is shown by running: parity of steps with eager PyTorch over whole sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from crossfuse.core.dimensions import symbols_in
from crossfuse.core.tensors import NEXT, POSITION, STATE
from crossfuse.errors import InputError
from crossfuse.export.matching.axes import Size
from crossfuse.export.split.dependence import shape_symbols, shape_window
from crossfuse.graph.metadata import attention_nodes, clone, dim_of, site_of
from crossfuse.ops.contract import DOMAIN, NAME

__all__ = ["NoStepsError", "decode_stage"]

_RUNNING = ("CumSum", "CumProd")


class NoStepsError(InputError):
    """A model that decodes whole sequences, but not token by token."""


def decode_stage(query: ir.Model, tokens: str, length: int) -> ir.Model:
    """The step stage.

    Args:
        query: the query stage, fused, not lowered.
        tokens: its input of ids, ``[batch, tokens]``.
        length: of the state: the most tokens that one sequence may have.

    Raises:
        InputError: the graph can't be decoded step by step.
    """
    model = clone(query)
    NameFixPass()(model)
    return _Stepper(model, tokens, length).run()


@dataclass
class _State:
    arriving: ir.Value
    leaving: ir.Value


class _Stepper:
    def __init__(self, model: ir.Model, tokens: str, length: int) -> None:
        self.model, self.graph, self.length = model, model.graph, length
        source = next((v for v in self.graph.inputs if v.name == tokens), None)
        dim = (
            dim_of(source, 1)
            if source is not None and source.shape is not None and len(source.shape) == 2
            else None
        )
        if source is None or not isinstance(dim, str):
            raise InputError(
                "decoding needs a query input of ids with a dynamic length",
                where=model.graph.name,
                got=tokens,
                expected="[batch, tokens]",
            )
        self.source, self.axis = source, dim
        if any(value.name == POSITION for value in self.graph.inputs):
            raise self._cannot("an input has the name that the number of tokens takes", POSITION)
        others = [v.name for v in self.graph.inputs if v is not source and dim in shape_symbols(v)]
        if others:
            raise self._cannot("another input has a token axis", ", ".join(map(str, others)))
        self.moving: set[ir.Value] = {source}
        self.needs: dict[ir.Value, bool] = {}
        for node in self.graph:
            if node.op_type == "Shape":
                self.needs[node.outputs[0]] = any(dim in symbols_in(d) for d in shape_window(node))
            elif any(v in self.moving for v in node.inputs):
                self.moving.update(node.outputs)
            else:
                self.needs.update(
                    dict.fromkeys(
                        node.outputs, any(self.needs.get(v, False) for v in node.inputs if v)
                    )
                )
        self.full: dict[ir.Value, ir.Value] = {}
        self.rows: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
        self.states: list[_State] = []
        self.position = ir.Value(
            name=POSITION, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64)
        )

    def run(self) -> ir.Model:
        """Rewrite and return the model."""
        attentions = [node for node in attention_nodes(self.graph) if node.inputs[1] in self.moving]
        if not attentions:
            raise self._cannot("no attention runs over the tokens", self.source.name)
        for node in list(self.graph):
            if not any(out in self.moving for out in node.outputs):
                continue
            if node.op_type in _RUNNING and node.inputs[0] in self.moving:
                raise self._cannot(
                    "what is computed for a token sums over those before it", node.outputs[0].name
                )
            keys_move = (node.domain, node.op_type) == (DOMAIN, NAME) and node.inputs[
                1
            ] in self.moving
            for index, value in enumerate(node.inputs):
                if value is None or value in self.moving or self.axis not in shape_symbols(value):
                    continue
                node.replace_input_with(
                    index, self._row(value, node, keys=keys_move and index in (3, 4))
                )
        for node in attentions:
            self._keep_state(node)
        kept = [value for value in self.graph.outputs if value in self.moving]
        self.graph.outputs[:] = [*kept, *(state.leaving for state in self.states)]
        self.graph.inputs[:] = [
            *self.graph.inputs,
            self.position,
            *(state.arriving for state in self.states),
        ]
        for value in self.moving:
            self._shorten(value)
        RemoveUnusedNodesPass()(self.model)
        return self.model

    def _keep_state(self, node: ir.Node) -> None:
        site = site_of(node)
        causal = node.attributes.get_string("causal", "none") != "none"
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        bias = node.inputs[4] if len(node.inputs) > 4 else None
        if not causal and mask is None and bias is None:
            raise self._cannot("an attention sees later tokens", site)
        if len(node.inputs) > 5 and node.inputs[5] is not None:
            raise self._cannot("an attention over the tokens has lengths of its own", site)
        tape = Tape()
        for index, role in ((1, "key"), (2, "value")):
            value = node.inputs[index]
            assert value is not None
            assert value.shape is not None
            shape = ir.Shape([dim_of(value, 0), self.length, dim_of(value, 2)])
            arriving = ir.Value(name=f"{STATE}{site}.{role}", shape=shape, type=value.type)
            leaving = tape.op(
                "ScatterND", [arriving, self._places(tape, value), self._flat(tape, value)]
            )
            leaving.name, leaving.shape, leaving.type = f"{NEXT}{site}.{role}", shape, value.type
            self.states.append(_State(arriving, leaving))
            node.replace_input_with(index, leaving)
        if causal:
            one = self._constant(tape, [1])
            seen = tape.op("Add", [self.position, one])
            query = node.inputs[0]
            assert query is not None
            batch = tape.op("Shape", [query], attributes={"start": 0, "end": 1})
            lengths = tape.op("Expand", [seen, batch])
            lengths.shape, lengths.type = (
                ir.Shape([dim_of(query, 0)]),
                ir.TensorType(ir.DataType.INT64),
            )
            node.resize_inputs(6)
            node.replace_input_with(5, lengths)
            node.attributes["causal"] = ir.AttrString("causal", "none")
        self.graph.insert_before(node, tape.nodes)

    def _places(self, tape: Tape, value: ir.Value) -> ir.Value:
        """``[batch, 2]``: where each sequence's new row goes."""
        count = tape.op("Shape", [value], attributes={"start": 0, "end": 1})
        scalar = tape.op("Squeeze", [count])
        start, step = (
            tape.op("Constant", [], attributes={"value": ir.tensor(np.array(n, np.int64))})
            for n in (0, 1)
        )
        rows = tape.op(
            "Unsqueeze", [tape.op("Range", [start, scalar, step]), self._constant(tape, [1])]
        )
        columns = tape.op(
            "Expand",
            [
                tape.op("Unsqueeze", [self.position, self._constant(tape, [1])]),
                tape.op("Shape", [rows]),
            ],
        )
        return tape.op("Concat", [rows, columns], attributes={"axis": 1})

    def _flat(self, tape: Tape, value: ir.Value) -> ir.Value:
        """``[batch, 1, width]`` → ``[batch, width]``."""
        return tape.op("Squeeze", [value, self._constant(tape, [1])])

    def _row(self, value: ir.Value, before: ir.Node, *, keys: bool) -> ir.Value:
        """The row at the position of what has a token axis; a mask's last axis stays whole where it
        counts keys."""
        assert value.shape is not None
        rank = len(value.shape)
        axes = tuple(
            a for a in range(rank) if dim_of(value, a) == self.axis and not (keys and a == rank - 1)
        )
        merged = [
            dim_of(value, a)
            for a in range(rank)
            if dim_of(value, a) != self.axis and self.axis in symbols_in(dim_of(value, a))
        ]
        if merged:
            raise self._cannot("a size is merged with the token axis", merged[0])
        if (value, axes) not in self.rows:
            full = self._full(value, before)
            tape = Tape()
            for axis in axes:
                shape = [dim_of(full, a) for a in range(rank)]
                row = tape.op("Gather", [full, self.position], attributes={"axis": axis})
                shape[axis] = 1
                row.shape, row.type = ir.Shape(shape), value.type
                full = row
            self.graph.insert_before(before, tape.nodes)
            self.rows[value, axes] = full
        return self.rows[value, axes]

    def _full(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The value computed for the state's whole length."""
        if value in self.full or value in self.moving:
            return self.full.get(value, value)
        node = value.producer()
        if node is None or not (self.needs.get(value, False) or self.axis in shape_symbols(value)):
            return value
        if node.op_type == "Shape":
            tape = Tape()
            parts = [
                self._size(tape, dim, node, index) for index, dim in enumerate(shape_window(node))
            ]
            made = parts[0] if len(parts) == 1 else tape.op("Concat", parts, attributes={"axis": 0})
            made.shape, made.type = value.shape, value.type
            self.graph.insert_before(before, tape.nodes)
            self.full[value] = made
            return made
        inputs = [v if v is None else self._full(v, before) for v in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
        )
        copy.metadata_props.update(node.metadata_props)
        self.graph.insert_before(before, copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type = old.type
            new.shape = (
                None
                if old.shape is None
                else ir.Shape([self._long(dim_of(old, a)) for a in range(len(old.shape))])
            )
            self.full[old] = new
        return self.full[value]

    def _size(self, tape: Tape, dim: int | str | None, node: ir.Node, index: int) -> ir.Value:
        if dim == self.axis:
            return self._constant(tape, [self.length])
        if self.axis in symbols_in(dim):
            raise self._cannot("a size is merged with the token axis", dim)
        start = (node.attributes.get_int("start", 0) or 0) + index
        return tape.op("Shape", list(node.inputs), attributes={"start": start, "end": start + 1})

    def _long(self, dim: int | str | None) -> int | str | None:
        return self.length if dim == self.axis else None if self.axis in symbols_in(dim) else dim

    def _shorten(self, value: ir.Value) -> None:
        """One token in place of the token axis."""
        if value.shape is None:
            return
        dims: list[int | str | None] = []
        for axis in range(len(value.shape)):
            dim = dim_of(value, axis)
            if isinstance(dim, str) and self.axis in symbols_in(dim):
                size = Size.parse(dim)
                rest = tuple(s for s in size.symbols if s != self.axis)
                plain = all(s.isidentifier() for s in size.symbols)
                dims.append(Size(size.factor, rest).dim if plain else None)
            else:
                dims.append(dim)
        value.shape = ir.Shape(dims)

    @staticmethod
    def _constant(tape: Tape, values: list[int]) -> ir.Value:
        value: ir.Value = tape.op(
            "Constant", [], attributes={"value": ir.tensor(np.array(values, np.int64))}
        )
        return value

    def _cannot(self, why: str, got: object) -> InputError:
        return NoStepsError(
            f"the model can't be decoded step by step: {why}",
            where=self.model.graph.name,
            got=got,
            do="Export without decoding",
        )
