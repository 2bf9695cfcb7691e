"""Attention within windows and blocks of ``transformers``, in forms that become one operator.

Longformer and LED compute the scores of a window as diagonals of overlapping chunks, and those of
global tokens in gathered rows, whose number depends on values. Pegasus-X adds up the products with
global tokens and with a block's own. BigBird joins blocks in five ways, by the place of the query's
block, and changes its modules for good where it first sees a short text. LongT5 has global tokens
where a text is long enough. Each stand-in computes the same rows:

* a window is attention to all tokens under a mask that is a band, and columns for global tokens.
  That takes memory for length × length scores, where no kernel keeps them away; lengths that are
  no multiple of the window need no padding.
* a block's keys are the global tokens and its own, in one row.
* BigBird's blocks are attention to all tokens under a mask as well. Out of training, what it calls
random blocks are its first block, so many times more: that is a bias of the logarithm of how often.
* LongT5's global tokens are numbered whether or not a text is long enough to have any.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.capture.traceable import replaced

__all__ = [
    "as_sparse_blocks",
    "blocked_attention",
    "global_blocks",
    "unpadded",
    "windowed_attention",
    "with_whole_masks",
]

Note = Callable[[nn.Module], None]

_HIDDEN = -10000.0
"""What BigBird adds to the scores of padding."""


def windowed_attention(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    is_index_masked: Tensor,
    is_index_global_attn: Tensor,
    is_global_attn: Any = None,
    output_attentions: bool = False,
) -> tuple[Tensor]:
    """Longformer's: rows of local tokens, rows of global tokens, and 0 for padding.

    Args:
        hidden_states: ``[B, L, H·D]``.
        attention_mask: ``[B, L]``, 0 for local tokens, above for global ones, below for padding.
        is_index_masked, is_index_global_attn: bool ``[B, L]``, the same by kind.
    """
    del is_global_attn, output_attentions
    places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    near = (places[:, None] - places).abs() <= self.one_sided_attn_window_size
    seen_locally = near & (attention_mask == 0)[:, None, None, :]
    seen_globally = is_index_global_attn[:, None, None, :]

    def heads(projection: Any) -> Tensor:
        by_head: Tensor = projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))
        return by_head.transpose(1, 2)

    local = F.scaled_dot_product_attention(
        heads(self.query), heads(self.key), heads(self.value), seen_locally | seen_globally
    )
    whole = F.scaled_dot_product_attention(
        heads(self.query_global),
        heads(self.key_global),
        heads(self.value_global),
        ~is_index_masked[:, None, None, :],
    )
    rows = torch.where(is_index_global_attn[:, None, :, None], whole, local)
    rows = rows.masked_fill(is_index_masked[:, None, :, None], 0.0)
    return (rows.transpose(1, 2).flatten(2),)


def unpadded(self: Any, pad_token_id: int, **inputs: Any) -> tuple[Any, ...]:
    """What pads to whole windows, for windows that need none: how much is padded, and the inputs,
    in the order in which the library gives and takes them."""
    del self, pad_token_id
    return (0, *inputs.values())


def blocked_attention(  # noqa: PLR0913 -- the library calls it so
    self: Any,
    global_k: Tensor,
    global_v: Tensor,
    local_q: Tensor,
    local_k: Tensor,
    local_v: Tensor,
    mask: Tensor,
    dim: Any,
) -> tuple[Tensor, None]:
    """Pegasus-X's, of a block's tokens: to the global tokens and to the block.

    Args:
        global_k, global_v: ``[B, H, G, D]``.
        local_q, local_k, local_v: ``[B, H, N·K, D]``; queries are scaled.
        mask: float ``[B, N·K]``, added to the scores.
        dim: the library's record of sizes.

    Returns:
        ``[B, H, N, K, D]``, and no probabilities.
    """
    del self
    size = dim.block_size

    def blocks(tokens: Tensor) -> Tensor:
        blocked: Tensor = tokens.unflatten(2, (-1, size))
        return blocked.transpose(1, 2)  # [B, N, H, K, D]

    def with_global(tokens: Tensor, shared: Tensor) -> Tensor:
        own = blocks(tokens)
        return torch.cat([shared[:, None].expand(-1, own.shape[1], -1, -1, -1), own], dim=3)

    query = blocks(local_q)
    bias = F.pad(mask.unflatten(1, (-1, size)), (global_k.shape[2], 0))[:, :, None, None, :]
    rows = F.scaled_dot_product_attention(
        query.flatten(0, 1),
        with_global(local_k, global_k).flatten(0, 1),
        with_global(local_v, global_v).flatten(0, 1),
        bias.flatten(0, 1),
        scale=1.0,
    )
    return rows.unflatten(0, query.shape[:2]).transpose(1, 2), None


def with_whole_masks(forward: Callable[..., Any], note: Note) -> Callable[..., Any]:
    """A forward of BigBird's that gives its sparse attention the mask that it gives its full one,
    and neither pads to blocks nor changes modules by length.

    Args:
        forward: of the whole encoder.
        note: is not told anything: no attention is in the encoder itself.
    """
    del note

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for part in self.modules():
                if getattr(part, "attention_type", None) == "block_sparse":
                    stack.enter_context(replaced(part, "attention_type", "original_full"))
            return forward(self, *args, **kwargs)

    return run


def as_sparse_blocks(forward: Callable[..., Any], note: Note) -> Callable[..., Any]:
    """A forward of what holds BigBird's attention, sparse or full, which computes the sparse one
    itself: where that becomes a full one in eager execution, this is where it is seen.

    Args:
        forward: of the module that holds it.
        note: is told the module, whose attentions are fewer than the library's.
    """

    @functools.wraps(forward)
    def run(
        self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **given: Any
    ) -> Any:
        if not hasattr(self.self, "num_random_blocks"):
            return forward(self, hidden_states, attention_mask, **given)
        note(self)
        found = sparse_blocks(self.self, hidden_states, attention_mask)
        residual = () if isinstance(self.output, nn.Linear) else (hidden_states,)
        return self.output(found, *residual), None

    return run


def sparse_blocks(self: Any, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """BigBird's: every block's tokens to the first and last block and to those beside it, the first
    and last block's to all; a text of a few blocks has full attention.

    Args:
        hidden_states: ``[B, L, H·D]``.
        attention_mask: of full attention, ``[B, 1, L, L]``: bool, True = attend, or added to the
            scores; None where nothing is hidden.

    Returns:
        ``[B, L, H·D]``, 0 for padding unless the text is short.
    """
    size, copies = self.block_size, self.num_random_blocks
    places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    blocks = places // size
    last, is_short = blocks[-1], places[-1] < (5 + 2 * copies) * size
    at_ends = (blocks == 0) | (blocks == last)
    near = (blocks[:, None] - blocks).abs() <= 1
    rows = torch.where(near | at_ends | at_ends[:, None], 0.0, -math.inf)
    again = (blocks == 0) & ~at_ends[:, None]
    bias = torch.where(again, math.log1p(copies), rows)[None, None]
    full, is_real = torch.zeros_like(bias), torch.ones_like(bias[:, :, :1], dtype=torch.bool)
    if attention_mask is not None:
        is_bool = attention_mask.dtype == torch.bool
        full = torch.where(attention_mask, 0.0, -math.inf) if is_bool else attention_mask
        is_real = full[:, :, -1:] == 0

    def heads(projection: Any) -> Tensor:
        by_head: Tensor = projection(hidden_states).unflatten(
            -1, (self.num_attention_heads, self.attention_head_size)
        )
        return by_head.transpose(1, 2)

    query, key, value = (heads(layer) for layer in (self.query, self.key, self.value))
    found = F.scaled_dot_product_attention(
        query,
        key,
        value,
        torch.where(is_short, full, bias + torch.where(is_real, 0.0, _HIDDEN)).to(query.dtype),
    )
    found = found.masked_fill(~(is_short | is_real).transpose(2, 3), 0.0)
    return found.transpose(1, 2).flatten(2)


def global_blocks(attention_mask: Tensor, global_block_size: int) -> tuple[Tensor, Tensor]:
    """LongT5's numbers of blocks, and which blocks there are; the original branches where there is
    none.

    Args:
        attention_mask: ``[B, L]``, 0 for padding.
        global_block_size: tokens of a block.

    Returns:
        ``[B, L]``, of each token its whole block, or -1; and ``[B, L // size]``, 1 for blocks of
        the row.
    """
    step = torch.ones_like(attention_mask) / global_block_size
    before = torch.floor(1.0 + (torch.cumsum(step, 1) - step) - 1.0).clamp(min=-1.0)
    numbers = torch.where(attention_mask != 0, before, -1.0)
    length = attention_mask.shape[1]
    places = torch.arange(length, device=attention_mask.device)
    is_end = places % global_block_size == global_block_size - 1
    whole = (is_end & (numbers >= 0)).sum(-1, keepdim=True).to(numbers.dtype) - 1
    numbers = torch.minimum(numbers, whole)
    blocks = torch.arange(length // global_block_size, device=attention_mask.device)
    there = blocks <= numbers.amax(-1, keepdim=True)
    return numbers.to(torch.int32), there.to(torch.int32)
