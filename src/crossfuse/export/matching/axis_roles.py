"""Which of an attention's batch factors are heads, which are contexts, and which are samples.

A match knows one group of batch factors. The operator wants them apart: heads are an axis of their
own, and keys and values may have fewer of them, or one context for all queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.export.matching.attention_match import AttentionMatch
from crossfuse.export.matching.axes import Axis, Size, all_factors, factors, size_of

__all__ = ["AxisRoles", "axis_roles"]

_FROM_FEATURES = frozenset({"Reshape", "Transpose", "Mul", "Div", "Identity", "Unsqueeze"})
"""What may stand between the queries and the reshape that split their features into heads."""


@dataclass(frozen=True)
class AxisRoles:
    """Factors by what they are to the operator.

    Attributes:
        batch: samples of the queries.
        heads: of the queries.
        kv_heads: those of the heads that keys and values have.
        contexts: samples of keys and values: all of the batch, or none where they lack it.
        rows, keys: query rows and keys.
    """

    batch: Axis
    heads: Axis
    kv_heads: Axis
    contexts: Axis
    rows: Axis
    keys: Axis


def axis_roles(match: AttentionMatch) -> AxisRoles:
    """Tell the roles of a match's batch factors.

    The heads are the last factor of known size. Where keys and values lack it, and have the known
    one before, both are heads (grouped queries). A batch that is one factor, as ``[batch·heads,
    length, size]`` begins, is split where the queries' features were split into heads further up;
    the match's own factors are then split, too.
    """
    if len(match.batch) == 1:
        _split_merged_heads(match)
    batch = factors(match.batch)
    of_keys = {*all_factors(match.key.axes), *all_factors(match.value.axes)}
    known = [factor for factor in batch if factor.size.static is not None]
    heads = known[-1:]
    if heads and heads[0] not in of_keys and len(known) > 1 and known[-2] in of_keys:
        heads = known[-2:]
    samples = tuple(factor for factor in batch if factor not in heads)
    return AxisRoles(
        batch=samples,
        heads=tuple(heads),
        kv_heads=tuple(factor for factor in heads if factor in of_keys),
        contexts=samples if any(factor in of_keys for factor in samples) else (),
        rows=factors(match.rows),
        keys=factors(match.keys),
    )


def _split_merged_heads(match: AttentionMatch) -> None:
    """Split the one batch factor into samples and heads where the number of heads is found."""
    (merged,) = match.batch
    count = _heads_in_features(match.query.value, size_of(match.size).static)
    if count is None:
        return
    heads = Size(count)
    samples = merged.size.over(heads)
    if samples is not None and samples != Size():
        merged.split(samples, heads)


def _heads_in_features(query: ir.Value, size: int | None) -> int | None:
    """Into how many heads of this size a reshape further up split the features."""
    node = query.producer()
    while size and node is not None and node.op_type in _FROM_FEATURES:
        source = node.inputs[0]
        width = _width(source)
        if node.op_type == "Reshape" and width > size and width % size == 0:
            return width // size
        node = source.producer() if source is not None else None
    return None


def _width(value: ir.Value | None) -> int:
    """The size of a value's last axis; 0 where it is not known."""
    size = value.shape[-1] if value is not None and value.shape else None
    return size if isinstance(size, int) else 0
