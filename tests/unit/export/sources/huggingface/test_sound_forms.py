"""Forms in which models take sound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.sound_forms import SOUND_FORMS


def plan_of(name: str, *takes: str, form: int = 0, **config: Any) -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    part = SimpleNamespace(model_type="part", **config)
    SOUND_FORMS[name][form](plan, SimpleNamespace(config=part), {name, *takes})
    return plan


@pytest.mark.parametrize(
    ("form", "config", "shape"),
    [
        (0, {"num_mel_bins": 8, "max_source_positions": 30}, ("batch", 8, 60)),
        (0, {"num_mel_bins": 8}, ("batch", 8, "frames")),
        (1, {"num_mel_bins": 8}, ("batch", "frames", 8)),
        (1, {"audio_config": SimpleNamespace(feature_size=5)}, ("batch", "frames", 5)),
        (3, {"num_mel_bins": 8}, ("batch", "frames", 8)),
    ],
)
def test_features_lie_along_either_axis(
    form: int, config: dict[str, Any], shape: tuple[int | str, ...]
) -> None:
    assert plan_of("input_features", form=form, **config).shapes == {"input_features": shape}


def test_a_mask_is_called_as_the_text_s_where_there_is_none() -> None:
    alone = plan_of("input_features", "attention_mask", num_mel_bins=8)
    assert alone.shapes["attention_mask"] == ("batch", "frames")
    beside = plan_of("input_features", "attention_mask", "input_ids", num_mel_bins=8)
    assert "attention_mask" not in beside.shapes
    own = plan_of("input_features", "input_features_mask", "input_ids", num_mel_bins=8)
    assert own.shapes["input_features_mask"] == ("batch", "frames")


def test_a_mask_of_something_else_is_left_out_at_last() -> None:
    for name, form in (("input_features", 3), ("input_values", 4)):
        masked = plan_of(name, "attention_mask", form=form - 2, num_mel_bins=8)
        assert "attention_mask" in masked.shapes
        plan = plan_of(name, "attention_mask", form=form, num_mel_bins=8)
        assert plan.shapes == {name: ("batch", "frames", 8)}


def test_samples_fill_several_strides() -> None:
    plan = plan_of("input_values", conv_stride=[5, 2])
    assert plan.shapes == {"input_values": ("batch", "samples")}
    assert (plan.dims["samples"].min, plan.example["samples"]) == (100, 200)
    assert plan_of("input_values", form=1).shapes == {"input_values": ("batch", 1, "samples")}
