"""An attention over tokens of the context and of the queries as two: the first rows attend to
themselves, the rest to both.

That is the same where no first row sees a later key. A causal attention says so by itself. A mask
says so where it is False for first rows at later keys, and a bias where it is −inf there, or so low
that a softmax in float64 makes 0 of it beside a row's own key, which must be seen.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from crossfuse.export.split.mask_bounds import MaskBounds
from crossfuse.export.split.row_parts import RowParts
from crossfuse.export.split.rows import CannotCutError, Cut, Rows, Side
from crossfuse.export.split.spans import EVERY_PLACE, Bound, Span
from crossfuse.graph.attention_node import AttentionInputs, AttentionNode
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dim_of, dims_of, same_dim

__all__ = ["cut_attention"]

_HIDES = -9e3
"""Biases that low make weights of 0, where scores are within hundreds of each other."""

_SHOWS = -100.0
"""Biases that a row's own key may have."""


def cut_attention(parts: RowParts, bounds: MaskBounds, attention: AttentionNode) -> Cut | None:
    """An attention's result in two parts; None where only its keys and values are in two.

    Args:
        parts: takes the two attentions.
        bounds: of masks.
        attention: an operand of which is in two parts.

    Raises:
        CannotCutError: first rows may see what follows them, or it can't be told.
    """
    cuts = [parts.cuts.get(v) for v in (attention.query, attention.key, attention.value)]
    if any(cut is not None and cut.axis != 1 for cut in cuts):
        raise CannotCutError("its operands are joined along another axis than the tokens")
    query, key, value = cuts
    if (key is None) != (value is None):
        raise CannotCutError("its keys and values are joined of different tokens")
    if query is None:
        return None
    if key is None or value is None:
        return _over_others(parts, attention, query)
    if not (query.rows.like(key.rows) and query.rows.like(value.rows)):
        raise CannotCutError("its queries and keys are joined of different tokens")
    _require_hidden(bounds, attention, query.rows)
    first = AttentionInputs(
        query.first,
        key.first,
        value.first,
        *(_block(parts, m, query.rows) for m in (attention.mask, attention.bias)),
    )
    rest = AttentionInputs(
        query.rest,
        parts.whole(attention.key),
        parts.whole(attention.value),
        *(_rows(parts, m, query.rows, Side.REST) for m in (attention.mask, attention.bias)),
    )
    causal = attention.causal != "none"
    kinds = ("upper_left", "lower_right") if causal else ("none", "none")
    return _both(parts, attention, query.rows, (first, rest), kinds)


def _over_others(parts: RowParts, attention: AttentionNode, query: Cut) -> Cut:
    """Rows of both parts attend to something else, each for itself."""
    if attention.causal != "none":
        raise CannotCutError("it counts its rows")
    sides = [
        AttentionInputs(
            query.part(side),
            attention.key,
            attention.value,
            _rows(parts, attention.mask, query.rows, side),
            _rows(parts, attention.bias, query.rows, side),
            attention.key_lengths,
        )
        for side in Side
    ]
    for operand in sides[0]:
        if operand is not None:
            parts.require_early(operand)
    return _both(parts, attention, query.rows, (sides[0], sides[1]), ("none", "none"))


def _require_hidden(bounds: MaskBounds, attention: AttentionNode, rows: Rows) -> None:
    """Refuse an attention whose first rows may see later keys.

    Raises:
        CannotCutError: it isn't known that they don't.
    """
    if attention.key_lengths is not None:
        raise CannotCutError("it has lengths of its own")
    if attention.causal != "none":
        square = same_dim(dim_of(attention.query, 1), dim_of(attention.key, 1))
        if not square:
            raise CannotCutError("it isn't known to have as many queries as keys")
        return
    behind = Bound.of(rows.dim(Side.FIRST))
    early = Span(Bound(0), behind + Bound(-1))
    late = Span(behind, Bound(math.inf))
    mask, bias = (_at(bounds, m, early, late) for m in (attention.mask, attention.bias))
    if mask.high == Bound(0) or bias.high.number == -math.inf:
        return
    if bias.high.over(Bound(_HIDES)) > 0 or bias.high.sizes or not _sees_itself(bounds, attention):
        raise CannotCutError(
            "its rows of the context may see what follows them: no causal mask is known to hide it"
        )


def _sees_itself(bounds: MaskBounds, attention: AttentionNode) -> bool:
    """Every row sees its own key."""
    own = Span(Bound.of("row"), Bound.of("row"))
    mask, bias = (_at(bounds, m, own, own) for m in (attention.mask, attention.bias))
    seen = attention.mask is None or mask.low == Bound(1)
    return seen and bias.low.over(Bound(_SHOWS)) >= 0


def _at(bounds: MaskBounds, mask: ir.Value | None, rows: Span, keys: Span) -> Span:
    """Bounds of a mask or a bias for some rows and keys."""
    dims = dims_of(mask)
    if dims is None or len(dims) != 4:
        return Span.of(-math.inf, math.inf)
    only = Span.of(0, 0)
    batch, heads = (only if dim == 1 else EVERY_PLACE for dim in dims[:2])
    return bounds.at(mask, (batch, heads, only if dims[2] == 1 else rows, keys))


def _block(parts: RowParts, mask: ir.Value | None, rows: Rows) -> ir.Value | None:
    """The first rows at the first keys."""
    if mask is None:
        return None
    found = _rows(parts, parts.part(mask, 3, rows, Side.FIRST), rows, Side.FIRST)
    if found is not None:
        parts.require_early(found)
    return found


def _rows(parts: RowParts, mask: ir.Value | None, rows: Rows, side: Side) -> ir.Value | None:
    """Rows of a mask or a bias that has them all."""
    if mask is None or dim_of(mask, 2) == 1:
        return mask
    return parts.part(mask, 2, rows, side)


def _both(
    parts: RowParts,
    attention: AttentionNode,
    rows: Rows,
    operands: tuple[AttentionInputs, AttentionInputs],
    kinds: tuple[str, str],
) -> Cut:
    results = []
    for side, inputs, kind in zip(Side, operands, kinds, strict=True):
        build = GraphBuilder()
        made = AttentionNode.emit(build, inputs, replace(attention.attributes, causal=kind))
        first = side is Side.FIRST
        made.node.name = f"{attention.site}:context" if first else attention.node.name
        dims = dims_of(attention.output) or []
        made.output.shape = ir.Shape([dims[0], rows.dim(side), *dims[2:]])
        made.output.type = attention.output.type
        made.node.metadata_props.update(attention.node.metadata_props)
        parts.put(build)
        results.append(made.output)
    parts.require_early(results[0])
    return Cut(1, rows, results[0], results[1])
