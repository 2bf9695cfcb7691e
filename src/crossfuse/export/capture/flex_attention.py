"""``flex_attention`` as scaled dot-product attention with the mask and bias that its modifications
amount to.

Eager PyTorch computes it in an operator of its own, which no exporter knows and no watcher sees
into. While a module is counted or traced, this takes its place.

Rules:

1. The mask of a ``BlockMask`` is its ``mask_mod`` over all places, at whatever sizes they have. The
blocks themselves are only a saving.
2. A ``score_mod`` that is linear in the score becomes a bias, and its factor part of the scale, or
of the queries or keys where it depends on those.
3. A modification takes only the axes that it depends on: a mask by distance is [1, 1, L, S].
4. Any other ``score_mod`` is written out between two products, where the passes may know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _functorch
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from crossfuse.export.capture.score_form import Form, NotLinearError, Score, form_of
from crossfuse.export.capture.traceable import as_operators, replaced

__all__ = ["flex_as_sdpa"]

_OTHER_BLOCKS = (
    *("full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"),
    *("full_q_num_blocks", "full_q_indices"),
)
_AXES = range(4)
"""Of a score: batch, head, query and key."""


@contextmanager
def flex_as_sdpa() -> Iterator[None]:
    """Put it in place for a while."""
    with ExitStack() as stack:
        for owner, name, value in (
            (flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
            (flex, "setup_compilation_env", nullcontext),
            (flex, "flex_attention_hop", _attention),
            (flex, "_create_empty_block_mask", _no_blocks),
            (flex, "create_mask", lambda mask_mod, b, h, *_: torch.ones(b, h, 1, 1)),
            (flex, "_convert_mask_to_block_mask", lambda mask, **_: (mask, None)),
            (flex, "_create_sparse_block_from_block_mask", _one_block),
            (BlockMask, "_adjust", _adjusted),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield


def _one_block(blocks: Any, mask_mod: Any, lengths: Any, *size: int) -> BlockMask:
    """A mask of the blocks' batch and heads whose blocks are not computed."""
    batch, heads = blocks[0].shape[:2]
    return BlockMask(
        seq_lengths=lengths,
        kv_num_blocks=torch.ones(batch, heads, 1, dtype=torch.int32),
        kv_indices=torch.zeros(batch, heads, 1, 1, dtype=torch.int32),
        **dict.fromkeys(_OTHER_BLOCKS),
        BLOCK_SIZE=(size[0], size[1]),
        mask_mod=mask_mod,
    )


def _no_blocks(query: Tensor, key: Tensor) -> BlockMask:
    """What an attention without a mask is given."""
    size = flex._LARGE_SPARSE_BLOCK_SIZE
    return _one_block((query[:1, :1, 0, 0],), flex.noop_mask, (1, 1), size, size)


def _adjusted(mask: BlockMask, queries: int, keys: int) -> BlockMask:
    return _one_block((mask.kv_indices, None), mask.mask_mod, (queries, keys), *mask.BLOCK_SIZE)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Any],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention, the base-2 logarithm of its sums of exponentials where asked for, and
    nothing."""
    sizes = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    mask_mod = block_mask[-1]
    mask = None if mask_mod is flex.noop_mask else _over(mask_mod, sizes, query)[0]
    form = Form(1.0, 0.0) if score_mod is flex._identity else _form(score_mod, sizes, query)
    folded = None if form is None else _folded(form, query, key)
    logarithms = kernel_options.get("OUTPUT_LOGSUMEXP", False)
    nothing = query.new_empty(0)
    scores = (
        _scores(query, key, score_mod, mask, scale) if folded is None or logarithms else nothing
    )
    if folded is None:
        grouped = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out = torch._safe_softmax(scores, -1) @ (value if _same_heads(query, value) else grouped)
    else:
        query, key, factor, offset = folded
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_joined(mask, offset, query),
            scale=scale * factor,
            enable_gqa=not _same_heads(query, key),
        )
    return out, scores.logsumexp(-1) / math.log(2) if logarithms else nothing, nothing


def _same_heads(a: Tensor, b: Tensor) -> bool:
    return a.shape[1] == b.shape[1]


def _form(score_mod: Callable[..., Any], sizes: Sequence[int], like: Tensor) -> Form | None:
    """Factor and offset of the scores; None where it is not linear in them."""

    def numbers(*places: Tensor) -> tuple[Tensor, ...]:
        form = form_of(score_mod(Score(like), *places))
        numbered.append(form)
        return tuple(part for part in (form.factor, form.offset) if isinstance(part, Tensor))

    numbered: list[Form] = []
    try:
        over = _over(numbers, sizes, like)
    except NotLinearError:
        return None
    found = iter(over)
    factor, offset = (
        next(found) if isinstance(part, Tensor) else part
        for part in (numbered[-1].factor, numbered[-1].offset)
    )
    return Form(factor, offset)


def _folded(form: Form, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float, Any] | None:
    """The factor moved to the queries, the keys or the scale; None where it depends on both."""
    factor = form.factor
    if not isinstance(factor, Tensor):
        return query, key, float(factor), form.offset
    factor = factor.to(query.dtype)
    if _is_one(factor, 3):
        return query * factor, key, 1.0, form.offset
    if _is_one(factor, 2) and (_is_one(factor, 1) or _same_heads(query, key)):
        return query, key * factor.transpose(2, 3), 1.0, form.offset
    return None


def _is_one(tensor: Tensor, axis: int) -> bool:
    return isinstance(tensor.shape[axis], int) and tensor.shape[axis] == 1


def _joined(mask: Tensor | None, offset: Any, like: Tensor) -> Tensor | None:
    """Mask and offset as one argument; an offset that is one number changes no softmax."""
    if not isinstance(offset, Tensor):
        return mask
    offset = offset.to(like.dtype)
    return offset if mask is None else torch.where(mask, offset, -math.inf)


def _scores(
    query: Tensor, key: Tensor, score_mod: Callable[..., Any], mask: Tensor | None, scale: float
) -> Tensor:
    """The modified scores, written out."""
    if not _same_heads(query, key):
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query @ key.transpose(-2, -1)) * scale

    def modified(scores: Tensor) -> Tensor:
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

        each = flex._vmap_for_bhqkv(score_mod, prefix=(0,))
        places = [torch.arange(n, device=scores.device) for n in scores.shape]
        with TransformGetItemToIndex():
            found: Tensor = each(scores, *places)
        return found

    if score_mod is not flex._identity:
        scores = as_operators(modified, scores)
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)


def _over(function: Callable[..., Any], sizes: Sequence[int], like: Tensor) -> tuple[Tensor, ...]:
    """A function of places at all of them, as tensors of four axes: 1 for those that it doesn't
    depend on."""
    ranges = [torch.arange(n, device=like.device) for n in sizes]
    first = [torch.arange(1, device=like.device) for _ in sizes]
    depends: list[set[int]] = []
    as_operators(lambda *places: _mapped(_watched(function, depends), places, _AXES), *first)
    made = []
    for i, axes in enumerate(depends):
        one, over = _part(function, i), sorted(axes)
        found = as_operators(lambda *places, f=one, over=over: _mapped(f, places, over), *ranges)
        for axis in _AXES:
            found = found if axis in axes else found.unsqueeze(axis)
        made.append(found)
    return tuple(made)


def _part(function: Callable[..., Any], i: int) -> Callable[..., Tensor]:
    """The i-th tensor of its results."""

    def part(*places: Tensor) -> Tensor:
        result = function(*places)
        found: Tensor = result[i] if isinstance(result, tuple) else result
        return found

    return part


def _mapped(function: Callable[..., Any], ranges: Sequence[Tensor], axes: Sequence[int]) -> Any:
    """Mapped over some axes, the first outermost; at the first place of the others."""

    def at(*places: Tensor) -> Any:
        given = dict(zip(axes, places, strict=True))
        return function(*(given[i] if i in given else ranges[i].new_zeros(()) for i in _AXES))

    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    for i in reversed(range(len(axes))):
        at = torch.vmap(at, in_dims=tuple(0 if j == i else None for j in range(len(axes))))
    with TransformGetItemToIndex():
        return at(*(ranges[i] for i in axes))


def _watched(function: Callable[..., Any], depends: list[set[int]]) -> Callable[..., Any]:
    """Notes which of its arguments each of the results depends on."""

    def watched(*places: Tensor) -> Any:
        levels = {_functorch.maybe_get_level(place): i for i, place in enumerate(places)}
        result = function(*places)
        for tensor in result if isinstance(result, tuple) else (result,):
            depends.append(set())
            while _functorch.is_batchedtensor(tensor):
                depends[-1].add(levels[_functorch.maybe_get_level(tensor)])
                tensor = _functorch.get_unwrapped(tensor)
        return result

    return watched
