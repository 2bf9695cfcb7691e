"""From a query stage over whole token sequences to one that computes new tokens alone, with state.

Rules:

1. The token input holds new tokens, one or more per sequence, and ``position`` says the place of
   each. Keys and values of attentions over the tokens become state of a fixed length: the new rows
   are written at their places, and a causal attention sees the rows up to a token's own,
   behind those of a context that stand in front of the tokens.
2. What depends on the number of tokens but not on their content (positions, relative biases, causal
   masks) is computed for the full length, which is constant, and its rows at the places are taken;
   where it is another in each run, of what it is computed from.
3. Another input beside the tokens, ``[batch, tokens]``, such as their mask, becomes state of the
   full length as well: what is made of it is computed for all places.
4. Everything else works token by token and stays; outputs get their tokens second (`step_outputs`).

It must not fire where an attention over the tokens sees later ones, where something else than an
attention makes a token's rows of other tokens (`mixed_tokens`), where another input has a token
axis and a further one, or where a size that is merged with the token axis would have to be cut.
That nothing else mixes tokens is shown by running: parity of steps with eager PyTorch over whole
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from crossfuse.core.dimensions import rename, symbols_in
from crossfuse.core.tensors import NEW_TOKENS, NEXT, POSITION, STATE
from crossfuse.errors import InputError
from crossfuse.export.split.dependence import shape_symbols, shape_window
from crossfuse.export.split.full_length import FullLength
from crossfuse.export.split.mixed_tokens import mixing_node
from crossfuse.export.split.row_operands import Operand, row_operands
from crossfuse.export.split.step_outputs import NoStepsError, has_columns, is_of_all, tokens_second
from crossfuse.export.split.token_places import Alignment, TokenPlaces, behind, in_front
from crossfuse.graph.attention_node import AttentionNode, attentions, is_attention, role_at
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.metadata import module_path
from crossfuse.graph.shapes import dim_of, dims_of

__all__ = ["NoStepsError", "decode_stage"]


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
    """Rows so far of what has one per token, as they come in and go out."""

    incoming: ir.Value
    outgoing: ir.Value


class _Stepper:
    """Rewrites a query stage in place.

    Attributes:
        source, axis: the token input, and the name of its token axis.
        beside: other inputs with an element per token.
        moving: values that depend on the tokens' content.
        of_beside: what depends on their content, and not on the tokens'.
        needs: of other values, whether their computation reads the number of tokens, or what is
            beside them.
        full: values computed for the state's whole length.
        rows: rows at the places, by table and alignment.
        states: of the attentions over the tokens, and of what is beside these.
        places: of the new tokens.
    """

    def __init__(self, model: ir.Model, tokens: str, length: int) -> None:
        self.model, self.graph, self.length = model, model.graph, length
        self.source, self.axis = self._token_input(tokens)
        self.beside = self._others_beside()
        self.moving: set[ir.Value] = {self.source}
        self.of_beside = set(self.beside)
        self.needs: dict[ir.Value, bool] = dict.fromkeys(self.beside, True)
        self._follow_tokens()
        self.full = FullLength(self.graph, self.axis, length, self.moving, self.needs, self._cannot)
        self.rows: dict[tuple[object, ...], ir.Value] = {}
        self.states: list[_State] = []
        batch = dim_of(self.source, 0)
        int64 = ir.TensorType(ir.DataType.INT64)
        position = ir.Value(name=POSITION, shape=ir.Shape([batch, NEW_TOKENS]), type=int64)
        self.places = TokenPlaces(position, length, batch)

    def run(self) -> ir.Model:
        """Rewrite and return the model."""
        if pair := next((v.name for v in self.graph.outputs if has_columns(v, self.axis)), None):
            raise self._cannot("an output has a column for each token so far", pair)
        own = [v for v in self.graph.outputs if v in self.moving]
        if whole := next((v.name for v in own if is_of_all(v, self.axis)), None):
            raise self._cannot("an output is of all tokens together, not of each", whole)
        if mixing := mixing_node(self.graph, self.moving, self.axis):
            why = f"{mixing.op_type} makes what stands for a token of other tokens, too"
            raise self._cannot(why, module_path(mixing) or mixing.outputs[0].name)
        over_tokens = [found for found in attentions(self.graph) if found.key in self.moving]
        if not over_tokens:
            raise self._cannot("no attention runs over the tokens", self.source.name)
        first = next(iter(self.graph))
        head = GraphBuilder()
        for value in self.beside:
            self.full.values[value] = self._state(head, value, str(value.name)).outgoing
        head.insert_before(first)
        for node in list(self.graph):
            if any(out in self.moving for out in node.outputs):
                self._take_rows(node)
        for attention in over_tokens:
            self._keep_state(attention)
        self.places.insert_before(next(iter(self.graph)))
        kept = [self._output(value) for value in own]
        self.graph.outputs[:] = [*kept, *(state.outgoing for state in self.states)]
        incoming = [state.incoming for state in self.states]
        self.graph.inputs[:] = [*self.graph.inputs, self.places.position, *incoming]
        for value in (*self.moving, *self.beside):
            self._renamed(value)
        RemoveUnusedNodesPass()(self.model)
        return self.model

    def _output(self, value: ir.Value) -> ir.Value:
        made = tokens_second(self.graph, value, self.axis)
        self.moving.add(made)
        return made

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

    def _others_beside(self) -> list[ir.Value]:
        """Other inputs ``[batch, tokens]``; refuse what else has a token axis, and taken names."""
        inputs = self.graph.inputs
        if any(value.name == POSITION for value in inputs):
            raise self._cannot("an input has the name that the number of tokens takes", POSITION)
        taken = [v.name for v in inputs if NEW_TOKENS in shape_symbols(v)]
        if taken:
            raise self._cannot("a dimension has the name that the new tokens take", NEW_TOKENS)
        others = [v for v in inputs if v is not self.source and self.axis in shape_symbols(v)]
        ours = dims_of(self.source)
        wide = [v.name for v in others if dims_of(v) != ours]
        if wide:
            why = "another input has a token axis and is not [batch, tokens]"
            raise self._cannot(why, ", ".join(map(str, wide)))
        return others

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
                if any(v in self.of_beside for v in node.inputs):
                    self.of_beside.update(node.outputs)

    def _take_rows(self, node: ir.Node) -> None:
        """Give a node that works on new tokens the rows of whatever else has a token axis."""
        over_tokens = is_attention(node) and AttentionNode(node).key in self.moving
        for index, value in enumerate(node.inputs):
            if value is None or value in self.moving:
                continue
            if self.axis not in shape_symbols(value):
                if value in self.of_beside:
                    node.replace_input_with(index, self.full.of(value, node))
                continue
            counts_keys = over_tokens and role_at(node, index) in ("mask", "bias")
            row = self._row(value, node, index, keys=counts_keys)
            node.replace_input_with(index, row)

    def _keep_state(self, attention: AttentionNode) -> None:
        """Let an attention over the tokens read its keys and values from state, and write the new
        rows to it."""
        self._require_hidden_future(attention)
        build = GraphBuilder()
        front: list[ir.Value] = []
        for role, value in (("key", attention.key), ("value", attention.value)):
            front, own = in_front(value, self.moving)
            state = self._state(build, own, f"{attention.site}.{role}")
            attention.set_operand(role, behind(build, front, state.outgoing))
        if attention.causal != "none":
            mask, seen = attention.mask, self.places.seen_behind(build, front)
            if mask is not None:
                batch, _, rows, keys = dims_of(seen) or [None] * 4
                shape = [batch, dim_of(mask, 1), rows, keys]
                seen = build.op("And", mask, seen, like=seen, shape=shape)
            attention.set_operand("mask", seen)
            attention.set_causal("none")
        build.insert_before(attention.node)

    def _require_hidden_future(self, attention: AttentionNode) -> None:
        """Refuse an attention that may see later tokens, or says itself how many there are."""
        hidden = attention.causal != "none" or attention.mask is not None
        if not hidden and attention.bias is None:
            raise self._cannot("an attention sees later tokens", attention.site)
        if attention.key_lengths is not None:
            why = "an attention over the tokens has lengths of its own"
            raise self._cannot(why, attention.site)

    def _state(self, build: GraphBuilder, value: ir.Value, name: str) -> _State:
        """State of what has a row per token: as it comes in, and with the new rows as it goes
        out."""
        batch, _, *rest = dims_of(value) or [None, None]
        shape = ir.Shape([batch, self.length, *rest])
        incoming = ir.Value(name=f"{STATE}{name}", shape=shape, type=value.type)
        outgoing = self.places.written(build, incoming, value)
        outgoing.name = f"{NEXT}{name}"
        self.states.append(_State(incoming, outgoing))
        return self.states[-1]

    def _row(self, value: ir.Value, node: ir.Node, index: int, *, keys: bool) -> ir.Value:
        """The rows at the places of what has a token axis; a mask's last axis stays whole where it
        counts keys."""
        dims = dims_of(value) or []
        last = len(dims) - 1 if keys else len(dims)
        axes = [axis for axis in range(last) if dims[axis] == self.axis]
        counted = dims[:last] if self.full.at_length(dims[-1]) is not None else dims
        merged = [dim for dim in counted if dim != self.axis and self.axis in symbols_in(dim)]
        if merged:
            raise self._cannot("a size is merged with the token axis", merged[0])
        if not axes:
            return self.full.of(value, node)
        if len(axes) > 1:
            why = "a table of tokens by tokens is used outside an attention over them"
            raise self._cannot(why, value.name)
        return self._rows_at(value, node, self._alignment(value, node, index, axes[0]))

    def _rows_at(self, value: ir.Value, before: ir.Node, at: Alignment) -> ir.Value:
        """The rows of a table, or of what it is computed from, made in front of a node."""
        key = (value, at.rank, at.batch, at.tokens, dim_of(at.like, at.batch_of))
        if key not in self.rows:
            alone = dim_of(at.like, at.batch_of) == self.places.batch
            operands = row_operands(value, at, self.axis) if alone else None
            if operands is None:
                build, table = GraphBuilder(), self.full.of(value, before)
                self.rows[key] = self.places.rows(build, table, at)
                build.insert_before(before)
            else:
                self.rows[key] = self._computed(value, before, at, operands)
        return self.rows[key]

    def _computed(
        self, value: ir.Value, before: ir.Node, at: Alignment, operands: Sequence[Operand]
    ) -> ir.Value:
        """A table's node over the rows of its operands."""
        inputs = [self._operand(one, before) for one in operands]
        node = value.producer()
        assert node is not None
        made = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()))
        made.metadata_props.update(node.metadata_props)
        self.graph.insert_before(before, made)
        sizes = [self.full.long(dim) for dim in dims_of(value) or []]
        made.outputs[0].shape = self.places.shape_of(sizes, at)
        made.outputs[0].type = value.type
        return made.outputs[0]

    def _operand(self, one: Operand, before: ir.Node) -> ir.Value | None:
        """Rows of an operand, or all of it."""
        if one.value is None:
            return None
        if one.rows is not None:
            return self._rows_at(one.value, before, one.rows)
        table = self.full.of(one.value, before)
        if one.batch is None:
            return table
        build = GraphBuilder()
        found = self.places.spread(build, table, one.batch)
        build.insert_before(before)
        return found

    def _alignment(self, value: ir.Value, node: ir.Node, index: int, axis: int) -> Alignment:
        """How a table is aligned with the tokens that a node uses it for."""
        rank = len(value.shape or ())
        role = role_at(node, index)
        if role is not None:
            return Alignment(rank, 0, axis, self.source, 0)
        like = node.outputs[0]
        dims = dims_of(like) or []
        tokens = axis + len(dims) - rank
        if len(dims) < rank or dims[tokens] != self.axis:
            raise self._cannot("what depends on the places is not used token by token", value.name)
        batch = self.places.batch_axis(dims, tokens)
        if batch is None:
            raise self._cannot("sequences are not told apart where places count", value.name)
        return Alignment(len(dims), batch, tokens, like, batch)

    def _renamed(self, value: ir.Value) -> None:
        """The new tokens in place of the token axis."""
        dims = dims_of(value)
        if dims is None:
            return
        names = {self.axis: NEW_TOKENS}
        value.shape = ir.Shape([rename(d, names) if isinstance(d, str) else d for d in dims])

    def _cannot(self, why: str, got: object) -> InputError:
        return NoStepsError(
            f"the model can't be decoded step by step: {why}",
            where=self.model.graph.name,
            got=got,
            do="Export without decoding",
        )
