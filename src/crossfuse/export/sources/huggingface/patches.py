"""Patches for models of ``transformers`` that its own exporters can't trace. Each says what the
original does and why not.

A patch must compute what the original computes on every input; parity with the unpatched model, run
eagerly, checks that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.joined_rows import all_images
from crossfuse.export.sources.huggingface.keypoints import all_keypoints, all_layers
from crossfuse.export.sources.huggingface.windowed import (
    as_sparse_blocks,
    blocked_attention,
    global_blocks,
    unpadded,
    windowed_attention,
    with_whole_masks,
)

__all__ = ["our_patches"]


@contextmanager
def our_patches(
    *, all_real: bool = False, note: Callable[[nn.Module], None] = lambda _: None
) -> Iterator[None]:
    """Install every patch whose model is there, for a while.

    Args:
        all_real: no image of a row is padding.
        note: is told each module, as it runs, that computes its attentions as fewer.
    """
    from transformers.exporters import utils

    with ExitStack() as stack:
        instead = _PATCHES | (dict.fromkeys(_PADDED_IMAGES, all_images) if all_real else {})
        patches = {place: _instead(patch) for place, patch in instead.items()}
        patches |= {place: partial(wrap, note=note) for place, wrap in _WRAPPED.items()}
        for (module, owner, attribute), patch in patches.items():
            found = _module(module)
            target = getattr(found, owner, None) if owner else found
            if hasattr(target, attribute):
                stack.enter_context(utils.patch_attribute(target, attribute, patch))
        yield


def _instead(patch: Any) -> Any:
    return lambda _: patch


def _module(name: str) -> ModuleType | None:
    """A module below ``transformers.models``; None where this version has none of that name."""
    try:
        return importlib.import_module(f"transformers.models.{name}")
    except ModuleNotFoundError as error:
        if not f"transformers.models.{name}".startswith(error.name or " "):
            raise
        return None


def _vilt_patches(
    self: Any, pixel_values: Tensor, pixel_mask: Tensor, max_image_length: int = 200
) -> tuple[Tensor, Tensor, tuple[Tensor, tuple[int, int]]]:
    """ViLT's image tokens, in order, padding included and masked.

    The original stretches the grid of positions to each image in a loop, and draws as many patches
    from each image as the largest has, in random order, padding drawn too. Attention doesn't see
    the order, and the mask hides the padding.
    """
    x = self.patch_embeddings(pixel_values)
    real = F.interpolate(pixel_mask[:, None].to(x.dtype), size=(x.shape[2], x.shape[3]))[:, 0]
    grid = self.config.image_size // self.config.patch_size

    def stretched(extent: Tensor, size: int) -> Tensor:
        """Linear interpolation at y is Σₖ max(0, 1 − |y − k|) · positionₖ."""
        stretch = (grid - 1) / (extent - 1).clamp(min=1)
        at = torch.arange(size, device=x.device).to(x.dtype) * stretch[:, None]
        weights: Tensor = (
            1 - (at[:, :, None] - torch.arange(grid, device=x.device).to(x.dtype)).abs()
        ).clamp(min=0)
        return weights

    rows = stretched(real[:, :, 0].sum(dim=1), x.shape[2])
    columns = stretched(real[:, 0, :].sum(dim=1), x.shape[3])
    weights = (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
    positions = weights @ self.position_embeddings[0, 1:]
    first = (self.cls_token + self.position_embeddings[:, :1]).expand(x.shape[0], -1, -1)
    tokens = torch.cat([first, x.flatten(2).transpose(1, 2) + positions], dim=1)
    seen = torch.cat([torch.ones_like(real[:, 0, :1]), real.flatten(1)], dim=1).long()
    index = torch.stack(
        torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij"), dim=-1
    )
    index = index.flatten(0, 1)[None].expand(x.shape[0], -1, -1)
    return self.dropout(tokens), seen, (index, (x.shape[2], x.shape[3]))


def _moonshine_lengths(self: Any, input_lengths: int) -> int:
    """Lengths behind three convolutions. The original divides as floats, which fixes a symbolic
    length to its example."""
    return (((input_lengths - 127) // 64 + 1 - 7) // 3 + 1 - 3) // 2 + 1


def _dbrx_experts(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The sum over DBRX's experts. The original goes through those that were hit, of a list that
    has room for one expert more than there are."""
    flat = hidden_states.reshape(-1, self.hidden_size)
    shape = (-1, self.ffn_hidden_size, self.hidden_size)
    w1, v1, w2 = (weight.view(shape) for weight in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    total = torch.zeros_like(flat)
    for expert in range(self.num_experts):
        token, place = torch.where(top_k_index == expert)
        states = self.mlp(flat[token], w1[expert], v1[expert], w2[expert])
        weighted = states.view(-1, self.hidden_size) * top_k_weights[token, place, None]
        total = total.index_add(0, token, weighted)
    return total.view(hidden_states.shape[0], -1, self.hidden_size)


def _whole_tasks(
    self: Any, hidden_states: Tensor, mask: Tensor | None = None, encode_type: str = "task"
) -> Any:
    """States of classes, or of tasks with their mask. The original cuts tasks after the longest of
    a batch, which is a number of the mask; what it cuts off is hidden by the mask as well."""
    states = self.model(hidden_states)[0]
    if encode_type == "task":
        return states.transpose(0, 1), mask
    ends = hidden_states.argmax(dim=-1)
    return states[torch.arange(states.shape[0]), ends] @ self.text_projection


_PATCHES: dict[tuple[str, str, str], Any] = {
    ("vilt.modeling_vilt", "ViltEmbeddings", "visual_embed"): _vilt_patches,
    (
        "moonshine.modeling_moonshine",
        "MoonshinePreTrainedModel",
        "_get_feat_extract_output_lengths",
    ): _moonshine_lengths,
    ("longformer.modeling_longformer", "LongformerSelfAttention", "forward"): windowed_attention,
    ("longformer.modeling_longformer", "LongformerModel", "_pad_to_window_size"): unpadded,
    ("led.modeling_led", "LEDEncoderSelfAttention", "forward"): windowed_attention,
    ("led.modeling_led", "LEDEncoder", "_pad_to_window_size"): unpadded,
    (
        "pegasus_x.modeling_pegasus_x",
        "PegasusXGlobalLocalAttention",
        "compute_local_attention_representations",
    ): blocked_attention,
    ("dbrx.modeling_dbrx", "DbrxExperts", "forward"): _dbrx_experts,
    ("omdet_turbo.modeling_omdet_turbo", "OmDetTurboLanguageBackbone", "forward"): _whole_tasks,
    ("longt5.modeling_longt5", "", "_make_global_fixed_block_ids"): global_blocks,
    (
        "superpoint.modeling_superpoint",
        "SuperPointForKeypointDetection",
        "forward",
    ): all_keypoints,
}
"""Module below ``transformers.models``, class and method, or none and function → what stands in for
it."""

_WRAPPED: dict[tuple[str, str, str], Any] = {
    ("big_bird.modeling_big_bird", "BigBirdModel", "forward"): with_whole_masks,
    ("big_bird.modeling_big_bird", "BigBirdAttention", "forward"): as_sparse_blocks,
    ("bigbird_pegasus.modeling_bigbird_pegasus", "BigBirdPegasusEncoder", "forward"): (
        with_whole_masks
    ),
    (
        "bigbird_pegasus.modeling_bigbird_pegasus",
        "BigBirdPegasusEncoderAttention",
        "forward",
    ): as_sparse_blocks,
    ("lightglue.modeling_lightglue", "LightGlueForKeypointMatching", "_match_image_pair"): (
        all_layers
    ),
}
"""The same → what makes its stand-in of it, and of what is told modules."""

_PADDED_IMAGES = tuple(
    (f"{model}.modeling_{model}", f"{name}Model", "get_image_features")
    for model, name in (
        ("idefics2", "Idefics2"),
        ("idefics3", "Idefics3"),
        ("smolvlm", "SmolVLM"),
        ("modernvbert", "ModernVBert"),
        ("ultravbert", "UltraVBert"),
    )
)
"""Where images that are padding are left out."""
