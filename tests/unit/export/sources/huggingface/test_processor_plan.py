"""A plan from a processor: the ranges hold, masks are kept, and both sides are padded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossfuse.export.sources.huggingface.asked import ask
from crossfuse.export.sources.huggingface.load import load_model
from crossfuse.export.sources.huggingface.processor import load_processor
from crossfuse.export.sources.huggingface.processor_plan import plan_from_processor
from crossfuse.export.sources.huggingface.sample_inputs import Given
from crossfuse.export.sources.huggingface.tried import refusal
from processor_checkpoints import save_checkpoint


@pytest.mark.parametrize("name", ["llava", "bert"])
def test_the_model_takes_the_ends_of_every_range(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path)
    model = load_model(str(folder)).module
    plan = plan_from_processor(ask(model, load_processor(folder), Given()))
    dims = {dim.name: dim for axes in plan.dynamic.values() for dim in axes.values()}
    assert set(dims) == {"batch", "text"}
    assert plan.fixed == {}
    for end in (min, max):
        sizes = {dim: {min: limits.min, max: limits.max or 3}[end] for dim, limits in dims.items()}
        made = plan.sampler(sizes, torch.Generator().manual_seed(1))
        assert tuple(made["input_ids"].shape) == (sizes["batch"], sizes["text"])
        assert refusal(model, made) is None
    masks = [e["attention_mask"] for e in (plan.inputs, *plan.examples)]
    assert any(bool((mask[:, 0] == 0).any()) for mask in masks)
    assert any(bool((mask[:, -1] == 0).any()) for mask in masks)
