"""The library's attention interface: while a model is traced, its scaled-dot-product entry is our
operator.

The entry keeps its name, so that models prepare the masks that belong to it (bool, True = attend),
and none becomes ``None`` by mistake (`skipped_masks`: nor stays one by mistake). Fewer key heads
stay fewer: nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.skipped_masks import SkippedMasks
from crossfuse.ops.torch_op import fused_attention

__all__ = ["operator_as_interface"]


@contextmanager
def operator_as_interface(model: nn.Module) -> Iterator[set[str]]:
    """Replace the library's ``sdpa`` attention function; yields the paths of the modules that call
    it."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    paths = {module: name for name, module in model.named_modules()}
    called: set[str] = set()
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    masks = SkippedMasks(ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

    def attend(  # noqa: PLR0913 -- the library calls it so
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        attention_mask = masks.as_eager(attention_mask, bool(causal))
        plain = (
            module in paths
            and not dropout
            and kwargs.get("softcap") is None
            and kwargs.get("cache") is None
        )
        if not plain or (attention_mask is not None and attention_mask.ndim != 4):
            given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
            return original(  # type: ignore[no-any-return]
                module, query, key, value, attention_mask, position_bias=position_bias, **given
            )
        called.add(paths[module])
        return _attend(
            query,
            key,
            value,
            attention_mask,
            position_bias,
            scaling,
            causal and attention_mask is None,
        ), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = masks.make
    try:
        yield called
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = masks.original
        ALL_ATTENTION_FUNCTIONS["sdpa"] = original


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None,
    scaling: float | None,
    causal: bool,
) -> Tensor:
    """``[B, H, L, D]`` queries, ``[B, Hkv, S, D]`` keys and values → ``[B, L, H, D]``."""
    heads, kv_heads, keys = query.shape[1], key.shape[1], key.shape[2]
    if key.shape[0] != query.shape[0]:
        batch = max(key.shape[0], query.shape[0])
        query, key, value = (t.expand(batch, -1, -1, -1) for t in (query, key, value))
    mask: Tensor | None = None
    bias: Tensor | None = None
    if attention_mask is not None:
        attention_mask = attention_mask[..., :keys]
        mask, bias = (
            (attention_mask, None) if attention_mask.dtype == torch.bool else (None, attention_mask)
        )
    if position_bias is not None and mask is not None:
        # The library fills the bias where the mask hides, so that rows without keys average the
        # values.
        bias, mask = torch.where(mask, position_bias, torch.finfo(key.dtype).min), None
    elif position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    out: Tensor = fused_attention(
        query.transpose(1, 2).flatten(2),
        key.transpose(1, 2).flatten(2),
        value.transpose(1, 2).flatten(2),
        mask,
        None if bias is None else bias.to(query.dtype),
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal="upper_left" if causal else "none",
    )
    by_head: Tensor = out.unflatten(2, (heads, value.shape[-1]))
    return by_head
