"""``torch.ops.crossfuse.fused_attention``: the operator in PyTorch, with fake, eager and autograd
implementations.

Importing this module registers the operator. It is opaque to ``torch.export``, so that an exported
program keeps one node per attention; eager execution goes through
``F.scaled_dot_product_attention``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossfuse.ops.contract import check_shapes

__all__ = ["OP_NAME", "compute", "fused_attention"]

OP_NAME = "crossfuse::fused_attention"


def fused_attention(  # noqa: PLR0913 -- the operator's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    causal: str = "none",
) -> Tensor:
    """softmax(scale · Q Kᵀ + bias, over the attended keys) V, for one or more queries per context.

    Args:
        query: ``[Bq, L, Hq·D]``, floating point.
        key: ``[Bk, S, Hkv·D]``; ``Bk`` divides ``Bq``, ``Hkv`` divides ``Hq``.
        value: ``[Bk, S, Hkv·Dv]``.
        mask: bool, ``[1|Bk|Bq, 1|Hq, 1|L, S]``; True = attend.
        bias: added to the scaled scores, same shapes as ``mask``.
        key_lengths: int, ``[Bk]``; keys at or past the length are not attended.
        num_heads: ``Hq``.
        kv_num_heads: ``Hkv``; ``Hq`` where omitted.
        scale: factor on the scores; ``1/√D`` where omitted.
        causal: ``none``, ``upper_left`` or ``lower_right``.

    Returns:
        ``[Bq, L, Hq·Dv]``, of the query's dtype; rows that may attend to nothing are 0.

    Raises:
        InputError: shapes or attributes that break the contract.
    """
    if scale is None:
        scale = float((query.shape[-1] // num_heads) ** -0.5)
    out: Tensor = _fused_attention(
        query,
        key,
        value,
        mask,
        bias,
        key_lengths,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads or num_heads,
        scale=scale,
        causal=causal,
    )
    return out


@torch.library.custom_op(OP_NAME, mutates_args=())
def _fused_attention(  # noqa: PLR0913 -- the operator's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    causal: str = "none",
) -> Tensor:
    check_shapes(
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
    return compute(
        query,
        key,
        value,
        mask,
        bias,
        key_lengths,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale,
        causal=causal,
    )


@_fused_attention.register_fake
def _fake(  # noqa: PLR0913 -- the operator's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    causal: str = "none",
) -> Tensor:
    return query.new_empty(
        query.shape[0], query.shape[1], value.shape[2] // kv_num_heads * num_heads
    )


def compute(  # noqa: PLR0913 -- the operator's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    causal: str = "none",
) -> Tensor:
    """The differentiable implementation: fan-out folded into the query length, every mask in one
    additive or bool mask."""
    batch, length, _ = query.shape
    contexts, keys, _ = key.shape
    fan_out = batch // contexts
    q = query.reshape(contexts, fan_out, length, num_heads, -1).permute(0, 3, 1, 2, 4).flatten(2, 3)
    k = key.reshape(contexts, keys, kv_num_heads, -1).transpose(1, 2)
    v = value.reshape(contexts, keys, kv_num_heads, -1).transpose(1, 2)

    attend = _attended(query, key, mask, key_lengths, causal, contexts, fan_out)
    added = None if bias is None else _fold(bias, contexts, fan_out, length)
    attn_mask, has_keys = attend, None
    if added is not None:
        attn_mask = (added if attend is None else added.masked_fill(~attend, float("-inf"))).to(
            query.dtype
        )
        has_keys = attn_mask.amax(-1, keepdim=True) > float("-inf")
        attn_mask = torch.where(has_keys, attn_mask, torch.zeros_like(attn_mask))
    elif attend is not None:
        has_keys = attend.any(-1, keepdim=True)
        attn_mask = attend | ~has_keys
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask, scale=scale, enable_gqa=kv_num_heads != num_heads
    )
    if has_keys is not None:
        out = torch.where(has_keys, out, torch.zeros_like(out))
    out = out.unflatten(2, (fan_out, length)).permute(0, 2, 3, 1, 4)
    return out.reshape(batch, length, -1)


def _attended(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    key_lengths: Tensor | None,
    causal: str,
    contexts: int,
    fan_out: int,
) -> Tensor | None:
    """Which keys each folded query row may attend to, ``[1|Bk, 1|Hq, 1|G·L, S]``; None for all."""
    length, keys = query.shape[1], key.shape[1]
    attend = None if mask is None else _fold(mask, contexts, fan_out, length)
    if key_lengths is not None:
        valid = (torch.arange(keys, device=key.device) < key_lengths[:, None])[:, None, None, :]
        attend = valid if attend is None else attend & valid
    if causal != "none":
        offset = keys - length if causal == "lower_right" else 0
        row = torch.arange(length, device=key.device)[:, None] + offset
        allowed = (torch.arange(keys, device=key.device) <= row).repeat(fan_out, 1)[None, None]
        attend = allowed if attend is None else attend & allowed
    return attend


def _fold(mask: Tensor, contexts: int, fan_out: int, length: int) -> Tensor:
    """``[1|Bk|Bq, h, l, S]`` → ``[1|Bk, h, 1|G·L, S]``, the layout of queries folded into the
    length."""
    if fan_out == 1 or (mask.shape[0] != contexts * fan_out and mask.shape[2] == 1):
        return mask
    per_query = mask.shape[0] == contexts * fan_out
    shape = (contexts, fan_out) if per_query else (mask.shape[0], 1)
    folded = mask.unflatten(0, shape).expand(-1, fan_out, -1, length, -1)
    return folded.transpose(1, 2).flatten(2, 3)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor | None, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    ctx.attributes = keyword_only_inputs
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by recomputing the attention; mask and lengths have none."""
    saved: tuple[Tensor | None, ...] = ctx.saved_tensors
    # Optional tensors that were not passed are saved as None, but have no place among the
    # gradients.
    passed = len(ctx.needs_input_grad)
    requested = [i for i in (0, 1, 2, 4) if i < passed and ctx.needs_input_grad[i]]
    with torch.enable_grad():
        again = [
            t.detach().requires_grad_(i in requested) if t is not None else None
            for i, t in enumerate(saved)
        ]
        out = compute(*again, **ctx.attributes)  # type: ignore[arg-type]
        leaves = [t for i in requested if (t := again[i]) is not None]
        grads = torch.autograd.grad(out, leaves, grad)
    result: list[Tensor | None] = [None] * passed
    for i, value in zip(requested, grads, strict=True):
        result[i] = value
    return tuple(result)


_fused_attention.register_autograd(_backward, setup_context=_setup_context)
