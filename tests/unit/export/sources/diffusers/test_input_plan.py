"""Plans of inputs, and the forms that are tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from crossfuse import Dim
from crossfuse.export.sources.diffusers.input_plan import (
    InputPlan,
    factor_of,
    fixed_length,
    forms,
)
from crossfuse.export.sources.huggingface.input_fillers import normal, ones


def of(name: str, **config: Any) -> Any:
    made = type(name, (), {})()
    made.config = config
    return made


def test_nested_inputs_multiples_and_constants() -> None:
    plan = InputPlan()
    plan.dim("batch", 2)
    plan.dim("height", 3, 2, 9)
    plan.add("sample", ("batch", 4, "8*height", "height"), normal)
    plan.add("added.text", ("batch", 5), ones, context=True)
    plan.constants["none"] = None
    made = plan.sample({"batch": 3, "height": 2}, torch.Generator().manual_seed(0))
    assert made["sample"].shape == (3, 4, 16, 2)
    assert made["added"]["text"].shape == (3, 5)
    assert made["none"] is None
    assert plan.dynamic == {
        "sample": {0: Dim("batch"), 2: "8*height", 3: Dim("height", 2, 9)},
        "added.text": {0: Dim("batch")},
    }
    assert plan.context == ["added.text"]
    assert all(plan.other[name] != size for name, size in plan.example.items())


def test_factors() -> None:
    assert factor_of(of("UNet", block_out_channels=(1, 2, 3, 4))) == 8
    assert factor_of(of("Transformer", patch_size=2)) == 2
    assert factor_of(of("Video", patch_size=[1, 2, 4])) == 4
    assert factor_of(of("Adapter", channels=[1, 2], downscale_factor=8)) == 16
    assert factor_of(of("Plain")) == 1
    assert factor_of(SimpleNamespace(config={"patch_size": 2}, spatial_compression_ratio=32)) == 32


def test_forms_likely_ones_first() -> None:
    config = {"cross_attention_dim": [16, 16], "caption_channels": 12, "sample_size": 8}
    found = list(forms(of("Some", **config), frozenset({"encoder_hidden_states"})))
    assert (found[0].layout, found[0].grid, found[0].width) == ("image", "free", 12)
    assert {form.width for form in found} == {12, 16}
    assert "fixed" in {form.grid for form in found}
    bare = list(forms(of("Some"), frozenset()))
    assert {form.width for form in bare} == {None}
    assert "fixed" not in {form.grid for form in bare}
    assert next(forms(of("Some3DModel"), frozenset())).layout == "video"
    assert next(forms(of("Some"), frozenset({"img_ids"}))).layout == "tokens"


def test_lengths_of_the_configuration() -> None:
    assert fixed_length({"max_text_seq_length": 226}) == 226
    assert fixed_length({}) > 0
