"""Masks that keep the first keys of each context, proven from the graph: they are lengths, and
those leave flash attention.

A mask is such a prefix where it is ``[Bk, 1, 1, S]`` and comes, through operators that only add
axes of size 1, from comparing positions (``Range`` from 0 in steps of 1) with one number per
context: ``position < n`` in any of its spellings. Nothing is assumed of a mask that is an input of
the model.
"""

from __future__ import annotations

import onnx_ir as ir

from crossfuse.graph.shapes import dim_of, same_dim
from crossfuse.targets.fan_out import Site

__all__ = ["is_prefix", "masks_keys"]

_LESS = {"Less", "LessOrEqual"}
_OPPOSITE = {
    "Less": "GreaterOrEqual",
    "LessOrEqual": "Greater",
    "Greater": "LessOrEqual",
    "GreaterOrEqual": "Less",
}
_WIDE = {ir.DataType.INT32, ir.DataType.INT64}
_SAME = {"Unsqueeze", "Reshape", "Identity", "Squeeze", "Cast"}


def masks_keys(site: Site) -> bool:
    """The site's mask, alone, says the same for all heads and queries of a context: ``[Bk, 1, 1,
    S]``."""
    mask = site.mask
    if mask is None or site.bias is not None or site.causal != "none":
        return False
    return (
        dim_of(mask, 1) == 1
        and dim_of(mask, 2) == 1
        and same_dim(dim_of(mask, 0), dim_of(site.key, 0))
    )


def is_prefix(mask: ir.Value) -> bool:
    """A ``[Bk, 1, 1, S]`` mask keeps the first keys of each context, whatever the inputs."""
    if mask.shape is None or len(mask.shape) != 4:
        return False
    batch, keys = dim_of(mask, 0), dim_of(mask, 3)
    compared = _behind(mask, bool_only=True)
    node = compared.producer()
    if node is None or node.domain != "":
        return False
    op = node.op_type
    if op == "Not" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
        op = "" if node is None else _OPPOSITE.get(node.op_type, "")
    if node is None or op not in _OPPOSITE or not _spans(compared, batch, keys):
        return False
    positions, limits = node.inputs if op in _LESS else reversed(node.inputs)
    return (
        positions is not None
        and limits is not None
        and _counts(positions, keys)
        and _spans(limits, batch, 1)
    )


def _spans(value: ir.Value, batch: int | str | None, last: int | str | None) -> bool:
    """Its sizes are ``[batch, 1…, last]``, and its type holds integers or truth."""
    if value.shape is None or len(value.shape) < 2 or value.dtype not in {*_WIDE, ir.DataType.BOOL}:
        return False
    sizes = [dim_of(value, axis) for axis in range(len(value.shape))]
    return (
        same_dim(sizes[0], batch)
        and same_dim(sizes[-1], last)
        and all(size == 1 for size in sizes[1:-1])
    )


def _counts(value: ir.Value, keys: int | str | None) -> bool:
    """It is 0, 1, 2 … along its last axis, of so many keys, and the same along the others."""
    if (
        value.shape is None
        or not len(value.shape)
        or not same_dim(dim_of(value, len(value.shape) - 1), keys)
    ):
        return False
    if any(dim_of(value, axis) != 1 for axis in range(len(value.shape) - 1)):
        return False
    node = _behind(value).producer()
    if node is None or node.op_type != "Range":
        return False
    start, _, step = (
        ir.convenience.get_const_tensor(v) if v is not None else None for v in node.inputs
    )
    return (
        start is not None
        and step is not None
        and start.numpy().item() == 0
        and step.numpy().item() == 1
    )


def _behind(value: ir.Value, *, bool_only: bool = False) -> ir.Value:
    """What a value is made of by operators that keep its elements, in order."""
    node = value.producer()
    while (
        node is not None
        and node.domain == ""
        and node.op_type in _SAME
        and node.inputs[0] is not None
    ):
        source = node.inputs[0]
        if node.op_type == "Cast" and not {source.dtype, value.dtype} <= _WIDE:
            break
        if bool_only and source.dtype != ir.DataType.BOOL:
            break
        value, node = source, source.producer()
    return value
