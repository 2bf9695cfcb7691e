"""The meaning of the operator in float64 NumPy: slow, plain, and the truth that every lowering is
tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.ops.contract import check_shapes

__all__ = ["attention_reference"]

Float = NDArray[np.float64]


def attention_reference(  # noqa: PLR0913 -- the operator's own signature
    query: NDArray[np.floating],
    key: NDArray[np.floating],
    value: NDArray[np.floating],
    mask: NDArray[np.bool_] | None = None,
    bias: NDArray[np.floating] | None = None,
    key_lengths: NDArray[np.integer] | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    causal: str = "none",
) -> Float:
    """softmax(scale · Q Kᵀ + bias, over the attended keys) V, per head, in float64.

    Shapes and rules are those of :mod:`crossfuse.ops.contract`.

    Returns:
        ``[Bq, L, Hq·Dv]`` float64.

    Raises:
        InputError: shapes or attributes that break the contract.
    """
    batch, length, _ = check_shapes(
        query.shape,
        key.shape,
        value.shape,
        mask=None if mask is None else mask.shape,
        bias=None if bias is None else bias.shape,
        key_lengths=None if key_lengths is None else key_lengths.shape,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        causal=causal,
    )
    contexts, keys, _ = key.shape
    fan_out = batch // contexts
    q = _heads(query, num_heads)
    k = _per_query(_heads(key, kv_num_heads), fan_out, num_heads)
    v = _per_query(_heads(value, kv_num_heads), fan_out, num_heads)

    scores = scale * (q @ k.swapaxes(-1, -2))
    attend = np.ones((batch, num_heads, length, keys), dtype=bool)
    if mask is not None:
        attend &= _batch(mask, batch)
    if bias is not None:
        scores = scores + _batch(bias.astype(np.float64), batch)
    if key_lengths is not None:
        valid = np.arange(keys) < key_lengths[:, None]
        attend &= np.repeat(valid, fan_out, axis=0)[:, None, None, :]
    if causal != "none":
        offset = keys - length if causal == "lower_right" else 0
        attend &= np.arange(keys) <= np.arange(length)[:, None] + offset

    scores = np.where(attend, scores, -np.inf)
    peak = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(peak), 0.0, peak))
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    merged: Float = (weights @ v).swapaxes(1, 2).reshape(batch, length, -1)
    return merged


def _heads(tensor: NDArray[np.floating], heads: int) -> Float:
    batch, length, width = tensor.shape
    return tensor.astype(np.float64).reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _per_query(tensor: Float, fan_out: int, num_heads: int) -> Float:
    """Repeat contexts for the queries that share them, and key heads for the query heads that share
    them."""
    return np.repeat(np.repeat(tensor, fan_out, axis=0), num_heads // tensor.shape[1], axis=1)


def _batch(tensor: NDArray[Any], batch: int) -> NDArray[Any]:
    """A batch of 1 broadcasts; a batch of Bk is per context and is repeated; a batch of Bq
    stays."""
    return tensor if tensor.shape[0] == 1 else np.repeat(tensor, batch // tensor.shape[0], axis=0)
