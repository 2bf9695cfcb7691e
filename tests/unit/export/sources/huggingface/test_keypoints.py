"""Keypoints and their matching, against the library's own loops."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from crossfuse.export.sources.huggingface.keypoints import all_keypoints
from crossfuse.export.sources.huggingface.patches import our_patches


def _detector(most: int) -> transformers.SuperPointConfig:
    return transformers.SuperPointConfig(
        encoder_hidden_sizes=[4, 4, 4, 4],
        decoder_hidden_size=8,
        descriptor_decoder_dim=16,
        keypoint_threshold=0.02,
        max_keypoints=most,
        nms_radius=2,
        border_removal_distance=3,
    )


def _with_points(model: nn.Module) -> None:
    """Weights at random, so that images have points."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)


@pytest.mark.parametrize("most", [-1, 5, 12])
def test_points_of_several_images(most: int) -> None:
    torch.manual_seed(0)
    model = transformers.SuperPointForKeypointDetection(_detector(most)).eval()
    _with_points(model)
    images = torch.randn(3, 3, 32, 40)
    images[1] *= 0.1
    with torch.no_grad():
        expected = model(images)
        made = all_keypoints(model, images)
    counts = expected.mask.sum(1).tolist()
    assert min(counts) > 1
    assert (most < 0) == (len(set(counts)) > 1)
    for name in ("keypoints", "scores", "descriptors", "mask"):
        assert torch.allclose(made[name], expected[name], atol=1e-6), name
        assert made[name].dtype == expected[name].dtype


@pytest.mark.parametrize("pairs", [1, 2, 3])
@pytest.mark.parametrize("bias", [0.0, 1.2, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(2))
def test_layers_that_pairs_leave(pairs: int, bias: float, seed: int) -> None:
    torch.manual_seed(seed)
    config = transformers.LightGlueConfig(
        keypoint_detector_config=_detector(12).to_dict(),
        descriptor_dim=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        filter_threshold=0.01,
        depth_confidence=0.6,
        width_confidence=0.55,
    )
    model = transformers.LightGlueForKeypointMatching(config).eval()
    _with_points(model.keypoint_detector)
    with torch.no_grad():
        for layer in (*model.token_confidence, *model.match_assignment_layers):
            linear = layer.token if hasattr(layer, "token") else layer.matchability
            linear.weight.normal_()
            linear.bias.fill_(bias if hasattr(layer, "token") else 0.3)
    images = torch.randn(pairs, 2, 3, 32, 40)
    with torch.no_grad():
        expected = model(images)
        with our_patches():
            made = model(images)
    # Padding of both images of a pair, which is matched where the last point is written.
    judged = slice(None) if pairs == 1 else slice(-1)
    for name in ("matches", "matching_scores", "prune", "mask"):
        assert torch.allclose(made[name][..., judged], expected[name][..., judged], atol=1e-5), name
