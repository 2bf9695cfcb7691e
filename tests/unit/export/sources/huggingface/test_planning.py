"""The search for inputs that a model takes: real tiny models of kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from coverage.shrink import tiny_model
from crossfuse.export.sources.huggingface.planning import plan_by_name


def takes_of(model: Any) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


class Pairs(nn.Module):
    """Wants pairs of images and, as it says, boxes of a text."""

    config = SimpleNamespace(
        model_type="pairs", image_size=8, num_channels=1, vocab_size=9, max_position_embeddings=16
    )

    def forward(self, pixel_values: Tensor, input_ids: Any = None, bbox: Any = None) -> Tensor:
        if pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            raise ValueError("Input must be a 5D tensor of pairs")
        if bbox is None or bbox.is_floating_point():
            raise ValueError("give boxes of pixels")
        return pixel_values


def test_forms_are_tried_until_the_model_takes_one() -> None:
    model = Pairs()
    plan, refusal = plan_by_name(model, takes_of(model))
    assert refusal is None
    assert plan.shapes["pixel_values"] == ("batch", 2, 1, 8, 8)
    assert plan.shapes["bbox"] == ("batch", "text", 4)


def test_the_first_refusal_is_told_where_nothing_is_taken() -> None:
    class Never(Pairs):
        def forward(self, pixel_values: Tensor) -> Tensor:
            raise ValueError(f"not {list(pixel_values.shape)}")

    model = Never()
    plan, refusal = plan_by_name(model, takes_of(model))
    assert refusal is not None
    assert refusal.message == "ValueError: not [2, 1, 8, 8]"
    assert plan.shapes["pixel_values"] == ("batch", 1, 8, 8)


class Placing(nn.Module):
    """Puts 5 features of its one image, as they come, in the place of ids."""

    config = SimpleNamespace(
        model_type="placing", image_size=8, crop_size=8, patch_size=4, num_channels=1,
        vocab_size=30, max_position_embeddings=64, image_token_id=7,
    )  # fmt: skip

    def forward(
        self,
        input_ids: Tensor,
        image_pixel_values: Tensor,
        image_sizes: Any = None,
        image_attention_mask: Any = None,
    ) -> Tensor:
        assert image_sizes.tolist() == [[8, 8]]
        assert image_attention_mask.shape == (1, 2, 2, 2)
        states = torch.zeros(*input_ids.shape, 4)
        found = torch.nonzero(input_ids == 7, as_tuple=True)
        return states.index_put(found, image_pixel_values.flatten()[:20].view(5, 4))


def test_rows_that_are_put_say_how_many_places_there_are() -> None:
    model = Placing()
    plan, refusal = plan_by_name(model, takes_of(model))
    assert refusal is None
    assert plan.fixed["batch"] == 1
    assert plan.counts == {"input_ids": {7: 5}}
    made = plan.sample(plan.example, torch.Generator().manual_seed(0))
    assert (made["input_ids"] == 7).sum() == 5


class Masked(nn.Module):
    """Orders patches by numbers that it draws where it is given none, if it does so at all."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            model_type="masked", image_size=8, patch_size=4, num_channels=1
        )
        self._share = share

    def forward(self, pixel_values: Tensor, noise: Any = None) -> Tensor:
        if not self._share:
            return pixel_values
        order = torch.rand(len(pixel_values), 4) if noise is None else noise
        return pixel_values.flatten(1)[:, :4].gather(1, order.argsort(1))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_numbers_that_a_model_would_draw_are_inputs(share: float) -> None:
    model = Masked(share)
    plan, refusal = plan_by_name(model, takes_of(model))
    assert refusal is None
    assert plan.shapes.get("noise") == (("batch", 4) if share else None)


KINDS = {
    "llava": {"pixel_values": 4, "input_ids": 2},
    "qwen2_vl": {"pixel_values": 2, "position_ids": 3},
    "idefics3": {"pixel_values": 5, "pixel_attention_mask": 4},
    "gemma3": {"pixel_values": 4, "token_type_ids": 2},
    "udop": {"bbox": 3, "decoder_input_ids": 2},
    "pix2struct": {"flattened_patches": 3, "attention_mask": 2},
    "canary": {"input_features": 3, "decoder_input_ids": 2},
}
"""A type of each kind, and the rank of some of its inputs."""


@pytest.mark.parametrize(
    "model_type",
    [kind if kind == "llava" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_models_of_a_kind_take_what_is_planned(model_type: str) -> None:
    transformers.logging.set_verbosity_error()
    model = tiny_model(model_type)
    plan, refusal = plan_by_name(model, takes_of(model))
    assert refusal is None
    assert {n: len(plan.shapes[n]) for n in KINDS[model_type]} == KINDS[model_type]
    for sizes in (plan.example, {n: size + 2 for n, size in plan.example.items()}):
        inputs = plan.sample(sizes, torch.Generator().manual_seed(1))
        with torch.no_grad():
            first = model(**inputs, **plan.held_tensors())[0]
        assert torch.isfinite(first).all()


class Heard(nn.Module):
    """Puts features of a sound in the place of ids, and has no method that makes them: as many as
    it makes, if it counts them at all."""

    config = SimpleNamespace(
        model_type="heard", vocab_size=9, max_position_embeddings=64, num_mel_bins=4,
        max_source_positions=6, audio_token_id=7,
    )  # fmt: skip

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self._counts = counts

    def forward(self, input_ids: Tensor, input_features: Tensor) -> Tensor:
        tokens, features = int((input_ids == 7).sum()), 3 * len(input_features)
        if self._counts and tokens != features:
            raise ValueError(
                f"Audio features and audio tokens do not match, tokens: {tokens}, "
                f"features: {features}"
            )
        return input_ids.sum() + input_features.sum()


@pytest.mark.parametrize(("counts", "expected"), [(True, 3), (False, 1)])
def test_a_model_that_can_not_be_asked_says_how_many_placeholders_it_wants(
    counts: bool, expected: int
) -> None:
    model = Heard(counts)
    plan, refusal = plan_by_name(model, takes_of(model))
    assert refusal is None
    made = plan.sample(dict(plan.example), torch.Generator().manual_seed(0))
    assert (made["input_ids"] == 7).sum(-1).tolist() == [expected, expected]
