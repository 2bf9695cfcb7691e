"""Cut tokens in two before a graph is split: those of the context, and those of the queries that
follow them.

A language model that reads an image's tokens before a text's has one tensor for both. Under a
causal mask no image token sees the text, so its keys and values depend on the image alone, in every
layer; but a split by tensors would see none of it.

Rules:

1. Where what the context makes stands in front of what the queries make in a concatenation, the two
   are carried apart from there on, through all that works row by row (`row_parts`).
2. An attention over such tokens becomes two: the first rows attend to themselves, the rest to both.
   That holds where no first row sees a later key: by a causal attention, or by what mask or bias
   hold there whatever the inputs (`mask_bounds`).
3. Whatever else reads such a tensor gets it whole again, joined. That is right in any case, and
   ends what can be computed apart.

Nothing is changed where no attention's keys are in two parts in the end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from crossfuse.bundle.manifest import PrefixReuse
from crossfuse.export.split.cut_attention import cut_attention
from crossfuse.export.split.dependence import READS_SIZES, Content, Dependence
from crossfuse.export.split.mask_bounds import MaskBounds
from crossfuse.export.split.met_otherwise import met_otherwise
from crossfuse.export.split.one_part import of_one_part
from crossfuse.export.split.row_parts import RowParts
from crossfuse.export.split.row_rules import ROW_RULES
from crossfuse.export.split.rows import CannotCutError, Cut, Rows, Side, sum_of
from crossfuse.export.split.token_axes import operand_axes, own_axis
from crossfuse.graph.attention_node import AttentionNode, is_attention
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.metadata import module_path
from crossfuse.graph.op_classes import is_onnx
from crossfuse.graph.shapes import dim_of, rank_of

__all__ = ["cut_prefix"]


def cut_prefix(model: ir.Model, context: Collection[str]) -> tuple[ir.Model, PrefixReuse | None]:
    """The graph with tokens of the context apart from those of the queries.

    Args:
        model: the fused graph; it stays as it is, and weights are shared.
        context: names of its context inputs.

    Returns:
        A changed copy, or the model itself where nothing could be cut; and what came of it, None
        where nothing of the context stands among tokens of the queries.
    """
    whole = model.clone()
    NameFixPass()(whole)
    cutter = _Cutter(whole.graph, context)
    found = cutter.run()
    if found is None or not found.attentions:
        return model, found
    NameFixPass()(whole)
    whole.graph.sort()
    RemoveUnusedNodesPass()(whole)
    return whole, found


_NO_ATTENTION = "no attention runs over them"


@dataclass
class _Cutter:
    """Cuts what a graph's context stands in front of, in place.

    Attributes:
        graph, context: what is cut, by the names of which inputs.
        sites: attentions whose keys and values are in two parts.
        refused: attentions that have to see all tokens, with the reason.
        reasons: why anything else is whole again.
    """

    graph: ir.Graph
    context: Collection[str]
    sites: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dependence = Dependence(self.graph, self.context)
        self.parts = RowParts(self.graph, self.dependence, ROW_RULES)
        self.bounds = MaskBounds()

    def run(self) -> PrefixReuse | None:
        """Cut, and say what came of it."""
        first: int | str | None = None
        nodes = list(self.graph)
        for node in nodes:
            self.dependence.add(node)  # what it reads may have become one part alone
            cut = self._join(node)
            if cut is not None:
                self.parts.cuts[node.outputs[0]] = cut
                first = cut.rows.dim(Side.FIRST) if first is None else first
            elif any(v in self.parts.cuts for v in node.inputs):
                self._take_in(node)
        self._outputs()
        if self.sites:
            return PrefixReuse(first, tuple(self.sites))
        reasons = [*self.refused, *self.reasons]
        if first is None:
            found = (met_otherwise(self.dependence, node) for node in nodes)
            reasons = [reason for reason in found if reason is not None]
        if first is None and not reasons:
            return None
        return PrefixReuse(None, (), reasons[0] if reasons else _NO_ATTENTION)

    def _join(self, node: ir.Node) -> Cut | None:
        """The two parts of a concatenation that the context stands in front of."""
        if not is_onnx(node, "Concat") or node.inputs[0] in self.parts.cuts:
            return None
        operands = [v for v in node.inputs if v is not None]
        early = [self.parts.is_early(v) for v in operands]
        count = early.index(False) if False in early else 0
        behind = [self.dependence.of(v) for v in operands]
        context = any(Content.CONTEXT in content for content in behind[:count])
        if not context or not any(Content.QUERY in content for content in behind[count:]):
            return None
        axis = own_axis(node, 0)
        first, rest = (
            self._concat(node, axis, some) for some in (operands[:count], operands[count:])
        )
        rows = Rows((first, axis), (rest, axis))
        return Cut(axis, rows, first, rest) if rows.dim(Side.FIRST) is not None else None

    def _concat(self, node: ir.Node, axis: int, operands: Sequence[ir.Value]) -> ir.Value:
        if len(operands) == 1:
            return operands[0]
        dim = sum_of([dim_of(v, axis) for v in operands])
        return self.parts.again(node, operands, axis, dim)[node.outputs[0]]

    def _take_in(self, node: ir.Node) -> None:
        """Let a node read a tensor that is in two parts."""
        try:
            if is_attention(node):
                done = self._attention(AttentionNode(node))
            else:
                done = self._sizes(node) or self._one_part(node) or self._longer(node)
                done = done or self._row_by_row(node)
        except CannotCutError as error:
            where = f"{module_path(node) or node.op_type}: {error}"
            (self.refused if is_attention(node) else self.reasons).append(where)
            done = False
        if not done:
            for index, value in enumerate(node.inputs):
                if value in self.parts.cuts:
                    node.replace_input_with(index, self.parts.whole(value))

    def _attention(self, attention: AttentionNode) -> bool:
        cut = cut_attention(self.parts, self.bounds, attention)
        over_both = all(
            v in self.parts.cuts and self.parts.cuts[v].axis == 1
            for v in (attention.key, attention.value)
        )
        if over_both:
            self.sites.append(attention.site)
        if cut is not None:
            self.parts.cuts[attention.output] = cut
        return cut is not None

    def _sizes(self, node: ir.Node) -> bool:
        """Sizes are those of the two parts together."""
        if node.op_type not in READS_SIZES or node.op_type == "Size":
            return False
        source = node.inputs[0]
        assert source is not None
        cut, build = self.parts.cuts[source], GraphBuilder()
        rank = rank_of(source) or 0
        window = range(rank)[
            node.attributes.get_int("start", 0) or 0 : node.attributes.get_int("end", None)
        ]
        sizes = [
            build.op("Add", cut.rows.count(build, Side.FIRST), cut.rows.count(build, Side.REST))
            if axis == cut.axis
            else build.size(cut.rest, axis)
            for axis in window
        ]
        result = build.concat(*sizes) if len(sizes) != 1 else sizes[0]
        self._replace(node.outputs[0], build, result)
        return True

    def _one_part(self, node: ir.Node) -> bool:
        """What is taken of one part alone."""
        build = GraphBuilder()
        source = node.inputs[0]
        cut = self.parts.cuts.get(source) if source is not None else None
        result = None if cut is None else of_one_part(build, node, cut)
        if result is None:
            return False
        self._replace(node.outputs[0], build, result)
        return True

    def _replace(self, old: ir.Value, build: GraphBuilder, result: ir.Value) -> None:
        """Put a new value in the place of another one, outputs included."""
        result.shape, result.type = old.shape, old.type
        self.parts.put(build, old.producer())
        if old.is_graph_output():
            result.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)

    def _longer(self, node: ir.Node) -> bool:
        """More tokens behind those that are in two parts."""
        source = node.inputs[0]
        cut = self.parts.cuts.get(source) if source is not None else None
        if cut is None or not is_onnx(node, "Concat") or own_axis(node, 0) != cut.axis:
            return False
        others = [self.parts.whole(v) if v in self.parts.cuts else v for v in node.inputs[1:]]
        rest = self._concat(node, cut.axis, [cut.rest, *(v for v in others if v is not None)])
        rows = Rows(cut.rows.first, (rest, cut.axis))
        self.parts.cuts[node.outputs[0]] = Cut(cut.axis, rows, cut.first, rest)
        return True

    def _row_by_row(self, node: ir.Node) -> bool:
        """The node, once for each part.

        Raises:
            CannotCutError: the first rows need something of the queries.
        """
        cuts = {i: self.parts.cuts[v] for i, v in enumerate(node.inputs) if v in self.parts.cuts}
        rows = next(iter(cuts.values())).rows
        for axis in range(rank_of(node.outputs[0]) or 0):
            axes = operand_axes(node, axis)
            if axes is None or any(axes[i] != cut.axis for i, cut in cuts.items()):
                continue
            if not all(cut.rows.like(rows) for cut in cuts.values()):
                continue
            found = {out: self._both(out, axis, rows) for out in node.outputs}
            self.parts.cuts.update(found)
            return True
        return False

    def _both(self, value: ir.Value, axis: int, rows: Rows) -> Cut:
        first = self.parts.part(value, axis, rows, Side.FIRST)
        self.parts.require_early(first)
        rest = self.parts.part(value, axis, rows, Side.REST)
        return Cut(axis, rows, first, rest)

    def _outputs(self) -> None:
        """Outputs in two parts are whole."""
        for value in list(self.graph.outputs):
            if value in self.parts.cuts:
                build = GraphBuilder()
                result = build.op("Identity", self.parts.whole(value))
                self._replace(value, build, result)
