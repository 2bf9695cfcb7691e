"""Keypoints of SuperPoint, and LightGlue's matching of them, without loops over images and without
sizes that shrink from layer to layer.

SuperPoint lists the points of each image, whose number is a matter of content, and pads them to the
longest list. LightGlue leaves the loop over its layers where a pair is settled, and drops points
that no layer needs any more. The stand-ins give the same results:

* points of all images are ordered at once, in the order in which they would be listed; their number
is the one size that depends on content.
* every layer runs; a pair keeps what it had where it was settled, and points that were dropped are
hidden in place of being removed.
* what becomes of results in the library is kept: dropped points of the shorter list overwrite the
last point with "no match", and pairs settled out of order are put into another order.

A pair of images without any point has no results: attention needs a key. Of several pairs, padding
is not matched with padding, to which the library gives a score of 1 by the square of their number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_keypoints", "all_layers"]


def all_keypoints(self: Any, pixel_values: Tensor, **_: Any) -> Any:
    """SuperPoint's forward.

    Args:
        pixel_values: ``[B, 3, H, W]``.

    Returns:
        the library's output: keypoints ``[B, N, 2]``, scores ``[B, N]``, descriptors ``[B, N, D]``
        and the mask ``[B, N]``, where N is the largest number that an image has.
    """
    from transformers.models.superpoint.modeling_superpoint import (
        SuperPointKeypointDescriptionOutput,
    )

    images = self.extract_one_channel_pixel_values(pixel_values)
    encoded = self.encoder(images)[0]
    decoder = self.keypoint_decoder
    scores = decoder._get_pixel_scores(encoded)
    height, width = scores.shape[1:]
    order, counts = _listed(scores, decoder)
    at = torch.nonzero(torch.arange(height * width, device=scores.device) < counts.max())[:, 0]
    count: Any = at.shape[0]
    if isinstance(count, torch.SymInt):
        torch._check(count >= 1)
    places, is_real = order[:, at], at < counts[:, None]
    points = torch.stack([places % width, places // width], -1).to(scores.dtype)
    described = self.descriptor_decoder
    features = described.conv_descriptor_b(described.relu(described.conv_descriptor_a(encoded)))
    features = torch.nn.functional.normalize(features, p=2, dim=1)
    features = described._sample_descriptors(points, features, 8).transpose(1, 2)
    size = torch.tensor([images.shape[3], images.shape[2]], device=points.device)

    def padded(tensor: Tensor) -> Tensor:
        # The library pads into tensors of PyTorch's default dtype.
        kept = is_real.reshape(*is_real.shape, *[1] * (tensor.ndim - 2))
        return tensor.to(torch.get_default_dtype()).masked_fill(~kept, 0.0)

    made: Any = SuperPointKeypointDescriptionOutput
    return made(
        keypoints=padded(points) / size,
        scores=padded(scores.flatten(1).gather(1, places)),
        descriptors=padded(features),
        mask=is_real.to(torch.int32),
    )


def _listed(scores: Tensor, decoder: Any) -> tuple[Tensor, Tensor]:
    """Places ``[B, H·W]`` of all pixels, an image's points first and in order; how many these are,
    ``[B]``: row by row, or the best of too many from the best one on."""
    height, width = scores.shape[1:]
    border, most = decoder.border_removal_distance, decoder.max_keypoints
    rows, columns = (torch.arange(n, device=scores.device) for n in (height, width))
    # The library takes the size in pixels for one in cells of 8 pixels.
    inside = (rows >= border) & (rows < 8 * height - border)
    inside = inside[:, None] & (columns >= border) & (columns < 8 * width - border)
    found = ((scores > decoder.keypoint_threshold) & inside).flatten(1)
    counts = found.sum(1)
    places = torch.arange(height * width, 0, -1, device=scores.device)
    order = torch.where(found, places, 0).sort(dim=1, descending=True, stable=True).indices
    if most >= 0:
        best = torch.where(found, scores.flatten(1), -1.0)
        best = best.sort(dim=1, descending=True, stable=True).indices
        order = torch.where((counts > most)[:, None], best, order)
        counts = counts.clamp(max=most)
    return order, counts


def all_layers(match: Callable[..., Any], note: Callable[[Any], None]) -> Callable[..., Any]:
    """LightGlue's matching of pairs, where it stops early and drops points.

    Args:
        match: the library's.
        note: is not told anything: there are as many attentions.
    """
    del note

    @functools.wraps(match)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.depth_confidence > 0 and self.width_confidence > 0:
            return _matched(self, *args, **kwargs)
        return match(self, *args, **kwargs)

    return run


def _matched(
    self: Any,
    keypoints: Tensor,
    descriptors: Tensor,
    height: int,
    width: int,
    mask: Tensor,
    **outputs: Any,
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    """Matches, their scores and the layers that each point went through, ``[B, 2, N]``.

    Args:
        keypoints, descriptors: ``[B, 2, N, 2]`` and ``[B, 2, N, D]``.
        height, width: of the images.
        mask: ``[B, 2, N]``, 0 for padding.
        outputs: which others are wanted; none is made.
    """
    del outputs
    from transformers.masking_utils import create_bidirectional_mask
    from transformers.models.lightglue.modeling_lightglue import normalize_keypoints

    batch, images, count = mask.shape
    each = mask.reshape(batch, -1).sum(1)
    kept, listed = mask.flatten(0, 1), torch.ones_like(mask.flatten(0, 1), dtype=torch.bool)
    points = normalize_keypoints(keypoints.flatten(0, 1), height, width)
    states, (turns, *_) = self._keypoint_processing(descriptors.flatten(0, 1), points)
    layers = torch.ones_like(kept, dtype=torch.int64)
    settled = torch.full_like(each, self.num_layers)
    widths = torch.full_like(each, 0)
    matches, scores = torch.full_like(layers, -1), torch.zeros_like(states[..., 0])
    for layer in range(self.num_layers):
        hidden = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=states[:, :1],
            attention_mask=kept,
            allow_is_bidirectional_skip=False,
        )
        states = self.transformer_layers[layer](states, turns, attention_mask=hidden)[0]
        is_open, is_last = settled == self.num_layers, layer == self.num_layers - 1
        now = is_open
        if not is_last:
            sure = self.token_confidence[layer](states)
            now = now & self._get_early_stopped_image_pairs(sure, layer, kept, num_points=each)
        found, found_scores = self._get_keypoint_matching(states, kept, layer)
        rows = now.repeat_interleave(images)[:, None]
        matches = torch.where(rows, found.masked_fill(~listed, -1), matches)
        scores = torch.where(rows, found_scores.masked_fill(~listed, 0.0), scores)
        # The longest list of the pairs that are still open is what all of them are padded to.
        lists = listed.sum(1).reshape(batch, -1).amax(1)
        longest = torch.where(is_open, lists, 0).max()
        widths = torch.where(now, longest, widths)
        settled = torch.where(now, layer, settled)
        if not is_last:
            matchable = self.match_assignment_layers[layer].get_matchability(states)
            stays = self._get_pruning_mask(sure, matchable, layer) & (kept != 0)
            goes_on = (settled == self.num_layers).repeat_interleave(images)[:, None]
            # ONNX Runtime has no choice between truth values.
            listed = (goes_on & stays) | (~goes_on & listed)
            kept = torch.where(goes_on, stays.to(kept.dtype), kept)
            layers = layers + (goes_on & stays)
    is_short = listed.sum(1, keepdim=True) < widths.max()
    is_last_point = torch.arange(count, device=kept.device) == count - 1
    lost = is_short & is_last_point
    matches, scores = matches.masked_fill(lost, -1), scores.masked_fill(lost, 0.0)
    order = settled.repeat_interleave(images).sort(stable=True).indices
    order = order[order[order]]
    made = (tensor[order].unflatten(0, (batch, images)) for tensor in (matches, scores, layers))
    return *made, None, None
