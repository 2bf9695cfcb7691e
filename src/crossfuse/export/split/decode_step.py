"""From a query stage over whole token sequences to one that computes the next token alone, with
state.

Rules:

1. The token input becomes one token. Keys and values of attentions over the tokens become state of
   a fixed length: the new row is written at ``position``, and the attention sees the rows up to it,
   behind those of a context that stand in front of the tokens.
2. What depends on the number of tokens but not on their content (positions, relative biases, causal
   masks) is computed for the full length, which is constant, and its row at ``position`` is taken.
3. Everything else works token by token and stays as it is.

It must not fire where an attention over the tokens sees later ones, where another input has a token
axis, or where a size that is merged with the token axis would have to be cut. That nothing else
mixes tokens is shown by running: parity of steps with eager PyTorch over whole sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from crossfuse.core.dimensions import size_at, symbols_in
from crossfuse.core.tensors import NEXT, POSITION, STATE
from crossfuse.errors import InputError
from crossfuse.export.matching.axes import Size
from crossfuse.export.split.dependence import shape_symbols, shape_window
from crossfuse.export.split.rows import joined_along, sum_of
from crossfuse.graph.attention_node import AttentionNode, attentions, is_attention, role_at
from crossfuse.graph.shapes import dim_of

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
    model = query.clone()
    NameFixPass()(model)
    return _Stepper(model, tokens, length).run()


class _TokenInput(NamedTuple):
    """The input of ids ``[batch, tokens]``, and the name of its token axis."""

    value: ir.Value
    axis: str


class _State(NamedTuple):
    """A key's or value's rows so far, as they come in and go out."""

    incoming: ir.Value
    outgoing: ir.Value


class _Stepper:
    """Rewrites a query stage in place.

    Attributes:
        source, axis: the token input, and the name of its token axis.
        moving: values that depend on the tokens' content.
        needs: of other values, whether their computation reads the number of tokens.
        full: values computed for the state's whole length, by what they stand for.
        rows: rows at the position, by value and axes.
        states: of the attentions over the tokens.
        position: the input that counts the tokens so far.
    """

    def __init__(self, model: ir.Model, tokens: str, length: int) -> None:
        self.model, self.graph, self.length = model, model.graph, length
        self.source, self.axis = self._token_input(tokens)
        self._require_one_token_axis()
        self.moving: set[ir.Value] = {self.source}
        self.needs: dict[ir.Value, bool] = {}
        self._follow_tokens()
        self.full: dict[ir.Value, ir.Value] = {}
        self.rows: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
        self.states: list[_State] = []
        int64 = ir.TensorType(ir.DataType.INT64)
        self.position = ir.Value(name=POSITION, shape=ir.Shape([1]), type=int64)

    def run(self) -> ir.Model:
        """Rewrite and return the model."""
        over_tokens = [found for found in attentions(self.graph) if found.key in self.moving]
        if not over_tokens:
            raise self._cannot("no attention runs over the tokens", self.source.name)
        for node in list(self.graph):
            if any(out in self.moving for out in node.outputs):
                self._take_rows(node)
        for attention in over_tokens:
            self._keep_state(attention)
        kept = [value for value in self.graph.outputs if value in self.moving]
        self.graph.outputs[:] = [*kept, *(state.outgoing for state in self.states)]
        incoming = [state.incoming for state in self.states]
        self.graph.inputs[:] = [*self.graph.inputs, self.position, *incoming]
        for value in self.moving:
            self._shorten(value)
        RemoveUnusedNodesPass()(self.model)
        return self.model

    def _token_input(self, tokens: str) -> _TokenInput:
        source = next((v for v in self.graph.inputs if v.name == tokens), None)
        two_axes = source is not None and source.shape is not None and len(source.shape) == 2
        axis = dim_of(source, 1) if two_axes else None
        if source is None or not isinstance(axis, str):
            raise InputError(
                "decoding needs a query input of ids with a dynamic length",
                where=self.graph.name,
                got=tokens,
                expected="[batch, tokens]",
            )
        return _TokenInput(source, axis)

    def _require_one_token_axis(self) -> None:
        inputs = self.graph.inputs
        if any(value.name == POSITION for value in inputs):
            raise self._cannot("an input has the name that the number of tokens takes", POSITION)
        others = [v.name for v in inputs if v is not self.source and self.axis in shape_symbols(v)]
        if others:
            raise self._cannot("another input has a token axis", ", ".join(map(str, others)))

    def _follow_tokens(self) -> None:
        """Find what depends on the tokens' content, and what on their number."""
        for node in self.graph:
            if node.op_type == "Shape":
                read = any(self.axis in symbols_in(size) for size in shape_window(node))
                self.needs[node.outputs[0]] = read
            elif any(v in self.moving for v in node.inputs):
                self.moving.update(node.outputs)
            else:
                read = any(self.needs.get(v, False) for v in node.inputs if v is not None)
                self.needs.update(dict.fromkeys(node.outputs, read))

    def _take_rows(self, node: ir.Node) -> None:
        """Give a node that works on one token the row of whatever else has a token axis."""
        if node.op_type in _RUNNING and node.inputs[0] in self.moving:
            raise self._cannot(
                "what is computed for a token sums over those before it", node.outputs[0].name
            )
        over_tokens = is_attention(node) and AttentionNode(node).key in self.moving
        for index, value in enumerate(node.inputs):
            if value is None or value in self.moving or self.axis not in shape_symbols(value):
                continue
            counts_keys = over_tokens and role_at(node, index) in ("mask", "bias")
            row = self._row(value, node, keys=counts_keys)
            node.replace_input_with(index, row)

    def _keep_state(self, attention: AttentionNode) -> None:
        """Let an attention over the tokens read its keys and values from state, and write the new
        row to it."""
        self._require_hidden_future(attention)
        tape = Tape()
        front: list[ir.Value] = []
        for role, value in (("key", attention.key), ("value", attention.value)):
            front, own = self._in_front(value)
            state = self._state(tape, own, f"{attention.site}.{role}")
            self.states.append(state)
            attention.set_operand(role, self._behind(tape, front, state.outgoing))
        if attention.causal != "none":
            attention.set_operand("key_lengths", self._lengths(tape, attention.query, front))
            attention.set_causal("none")
        self.graph.insert_before(attention.node, tape.nodes)

    def _require_hidden_future(self, attention: AttentionNode) -> None:
        """Refuse an attention that may see later tokens, or says itself how many there are."""
        hidden = attention.causal != "none" or attention.mask is not None
        if not hidden and attention.bias is None:
            raise self._cannot("an attention sees later tokens", attention.site)
        if attention.key_lengths is not None:
            why = "an attention over the tokens has lengths of its own"
            raise self._cannot(why, attention.site)

    def _state(self, tape: Tape, value: ir.Value, name: str) -> _State:
        """State of an operand: as it comes in, and with the new row as it goes out."""
        shape = ir.Shape([dim_of(value, 0), self.length, dim_of(value, 2)])
        incoming = ir.Value(name=f"{STATE}{name}", shape=shape, type=value.type)
        places, row = self._places(tape, value), self._flat(tape, value)
        outgoing = tape.op("ScatterND", [incoming, places, row])
        outgoing.name, outgoing.shape, outgoing.type = f"{NEXT}{name}", shape, value.type
        return _State(incoming, outgoing)

    def _in_front(self, value: ir.Value) -> tuple[list[ir.Value], ir.Value]:
        """Rows of a context that stand in front of the tokens', and those."""
        *front, own = joined_along(value, 1) or [value]
        alone = own in self.moving and not any(v in self.moving for v in front)
        return (front, own) if alone else ([], value)

    def _behind(self, tape: Tape, front: Sequence[ir.Value], state: ir.Value) -> ir.Value:
        """A state's rows behind those that stand in front of them."""
        if not front:
            return state
        joined: ir.Value = tape.op("Concat", [*front, state], attributes={"axis": 1})
        rows = sum_of([dim_of(v, 1) for v in (*front, state)])
        joined.shape, joined.type = ir.Shape([dim_of(state, 0), rows, dim_of(state, 2)]), state.type
        return joined

    def _lengths(self, tape: Tape, query: ir.Value, front: Sequence[ir.Value]) -> ir.Value:
        """``[batch]``: the tokens so far, the new one and those in front among them."""
        seen = tape.op("Add", [self.position, self._constant(tape, [1])])
        for value in front:
            count = tape.op("Shape", [value], attributes={"start": 1, "end": 2})
            seen = tape.op("Add", [seen, count])
        batch = tape.op("Shape", [query], attributes={"start": 0, "end": 1})
        lengths = tape.op("Expand", [seen, batch])
        lengths.shape = ir.Shape([dim_of(query, 0)])
        lengths.type = ir.TensorType(ir.DataType.INT64)
        return lengths

    def _places(self, tape: Tape, value: ir.Value) -> ir.Value:
        """``[batch, 2]``: where each sequence's new row goes."""
        count = tape.op("Shape", [value], attributes={"start": 0, "end": 1})
        scalar = tape.op("Squeeze", [count])
        zero, one = (
            tape.op("Constant", [], attributes={"value": ir.tensor(np.array(n, np.int64))})
            for n in (0, 1)
        )
        numbers = tape.op("Range", [zero, scalar, one])
        rows = tape.op("Unsqueeze", [numbers, self._constant(tape, [1])])
        position = tape.op("Unsqueeze", [self.position, self._constant(tape, [1])])
        columns = tape.op("Expand", [position, tape.op("Shape", [rows])])
        return tape.op("Concat", [rows, columns], attributes={"axis": 1})

    def _flat(self, tape: Tape, value: ir.Value) -> ir.Value:
        """``[batch, 1, width]`` → ``[batch, width]``."""
        return tape.op("Squeeze", [value, self._constant(tape, [1])])

    def _row(self, value: ir.Value, before: ir.Node, *, keys: bool) -> ir.Value:
        """The row at the position of what has a token axis; a mask's last axis stays whole where it
        counts keys."""
        assert value.shape is not None
        rank = len(value.shape)
        dims = [dim_of(value, axis) for axis in range(rank)]
        last = rank - 1 if keys else rank
        axes = tuple(axis for axis in range(last) if dims[axis] == self.axis)
        counted = dims[:last] if self._at_length(dims[-1]) is not None else dims
        merged = [dim for dim in counted if dim != self.axis and self.axis in symbols_in(dim)]
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
            return self._full_sizes(node, before)
        inputs = [v if v is None else self._full(v, before) for v in node.inputs]
        attributes, count = list(node.attributes.values()), len(node.outputs)
        copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=count)
        copy.metadata_props.update(node.metadata_props)
        self.graph.insert_before(before, copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.type = old.type
            if old.shape is not None:
                dims = (dim_of(old, axis) for axis in range(len(old.shape)))
                new.shape = ir.Shape([self._long(dim) for dim in dims])
            self.full[old] = new
        return self.full[value]

    def _full_sizes(self, node: ir.Node, before: ir.Node) -> ir.Value:
        """What a ``Shape`` reads where the sequence has the state's whole length."""
        value, tape = node.outputs[0], Tape()
        window = enumerate(shape_window(node))
        parts = [self._size(tape, dim, node, index) for index, dim in window]
        made = parts[0] if len(parts) == 1 else tape.op("Concat", parts, attributes={"axis": 0})
        made.shape, made.type = value.shape, value.type
        self.graph.insert_before(before, tape.nodes)
        self.full[value] = made
        return made

    def _size(self, tape: Tape, dim: int | str | None, node: ir.Node, index: int) -> ir.Value:
        at_length = self._at_length(dim) if self.axis in symbols_in(dim) else None
        if at_length is not None:
            return self._constant(tape, [at_length])
        if self.axis in symbols_in(dim):
            raise self._cannot("a size is merged with the token axis", dim)
        start = (node.attributes.get_int("start", 0) or 0) + index
        return tape.op("Shape", list(node.inputs), attributes={"start": start, "end": start + 1})

    def _long(self, dim: int | str | None) -> int | str | None:
        return self._at_length(dim) if self.axis in symbols_in(dim) else dim

    def _at_length(self, dim: int | str | None) -> int | None:
        """A size where there are as many tokens as the state has room for."""
        return size_at(dim, {self.axis: self.length})

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
