"""Masks of sound whose numbers a model reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.input_fillers import classes, normal, ones
from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.read_lengths import hold_read_lengths, reads

MASK = "feature_attention_mask"


class Cuts(nn.Module):
    """Cuts sounds after the longest one of a batch."""

    def forward(self, input_ids: Tensor, input_features: Tensor, **masks: Tensor) -> Tensor:
        longest = (masks[MASK].sum(-1) // 2).max().item()
        return input_features[:, : int(longest)].sum() + input_ids.sum()


class Lists(nn.Module):
    """Splits sounds by a list of their lengths."""

    def forward(self, input_ids: Tensor, input_features: Tensor, **masks: Tensor) -> Tensor:
        parts = input_features[masks[MASK].bool()].split(masks[MASK].sum(-1).tolist())
        return torch.cat(parts).sum() * 1.0 + input_ids.sum()


class Refuses(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        raise TypeError(str(inputs))


def planned() -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    plan.dim("frames", 12)
    plan.dim("text", 5)
    plan.add("input_ids", ("batch", "text"), classes(0, 9))
    plan.add("input_features", ("batch", "frames", 3), normal)
    plan.add(MASK, ("batch", "frames"), ones)
    return plan


def test_a_mask_that_is_asked_for_a_number_is_held() -> None:
    plan = planned()
    hold_read_lengths(Cuts(), plan)
    assert plan.held == {MASK: [[1] * 12]}
    assert list(plan.dims) == ["text"]
    assert plan.shapes == {"input_ids": (1, "text"), "input_features": (1, 12, 3)}
    inputs = plan.sample(plan.example, torch.Generator().manual_seed(0))
    assert Cuts()(**inputs, **plan.held_tensors()).isfinite()


@pytest.mark.parametrize("module", [Lists(), Refuses()])
def test_other_masks_stay_inputs(module: nn.Module) -> None:
    plan = planned()
    assert not reads(module, plan, MASK)
    hold_read_lengths(module, plan)
    assert MASK in plan.shapes
    assert not plan.held
