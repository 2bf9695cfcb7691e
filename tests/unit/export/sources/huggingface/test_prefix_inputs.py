"""Inputs whose first tokens are given apart: the model computes what it does on all of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossfuse import InputError, ModelSpec
from crossfuse.core.tensors import PREFIX
from crossfuse.export.sources.huggingface.prefix_inputs import PLACEHOLDERS, with_prefix

IMAGE, WIDTH = 4, 8
IDS = torch.tensor([[1, 4, 4, 9, 7, 8, 5], [0, 1, 4, 4, 9, 7, 2]])
MASK = (IDS != 0).long()
KINDS = (IDS == IMAGE).long()


class Reader(nn.Module):
    """Like a model of the library: a configuration, and results by name."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_token_id=IMAGE)
        self.embed, self.look = nn.Embedding(16, WIDTH), nn.Linear(3, WIDTH)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        image = self.look(pixel_values)
        x = self.embed(input_ids)
        x = x.masked_scatter((input_ids == IMAGE)[..., None].expand_as(x), image)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        if token_type_ids is not None:
            x = x + token_type_ids[..., None]
        return {"logits": x.cumsum(1), "pooled": x.mean(1), "image": image}


def spec_of(**changes: Any) -> ModelSpec:
    torch.manual_seed(0)
    inputs = {
        "input_ids": IDS,
        "pixel_values": torch.randn(2, 2, 3),
        "attention_mask": MASK,
        "token_type_ids": KINDS,
    }
    dynamic = {name: {0: "batch", 1: "text:5:20"} for name in inputs if name != "pixel_values"}
    dynamic["pixel_values"] = {0: "batch"}
    return replace(ModelSpec(Reader(), inputs, dynamic, context=("pixel_values",)), **changes)


@pytest.mark.parametrize("asked", [PLACEHOLDERS, "5"])
def test_two_parts_give_the_results_of_the_whole(asked: str) -> None:
    whole = spec_of()
    inputs = dict(whole.inputs)
    if asked == PLACEHOLDERS:  # the second row begins with its padding
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            inputs[name] = torch.stack([inputs[name][0], inputs[name][1].roll(-1)])
    expected = whole.run(inputs)
    spec, first = with_prefix(whole, asked)
    count = first.count
    assert first.placeholders == (2,)
    assert count == (3 if asked == PLACEHOLDERS else 5)
    found = spec.run(spec.inputs)
    torch.testing.assert_close(found["logits"], expected["logits"][:, count:])
    torch.testing.assert_close(found["pooled"], expected["pooled"])
    torch.testing.assert_close(found["image"], expected["image"])


def test_what_the_spec_says() -> None:
    spec, tokens = with_prefix(spec_of(), PLACEHOLDERS)
    first = [PREFIX + name for name in ("input_ids", "attention_mask", "token_type_ids")]
    assert set(spec.inputs) == {"pixel_values", "input_ids", "attention_mask", *first}
    assert set(spec.context) == {"pixel_values", *first}
    assert spec.counts == {"prefix_input_ids": {IMAGE: 2}, "input_ids": {IMAGE: 0}}
    assert (spec.dims["text"].min, spec.dims["text"].max) == (2, 20 - tokens.count)
    assert (spec.decode, spec.decode_where_possible) == ("input_ids", True)
    assert spec.inputs["prefix_attention_mask"].all()
    assert all(1 not in spec.axes[name] for name in first)


@pytest.mark.parametrize("sampled", [False, True])
def test_samples_keep_the_placeholders_where_they_are(sampled: bool) -> None:
    def sampler(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.arange(sizes["batch"]) % 2
        places = torch.arange(sizes["text"]) % 7
        ids, mask, kinds = (t[rows][:, places] for t in (IDS, MASK, KINDS))
        pixels = torch.randn(sizes["batch"], 2, 3, generator=generator)
        return {
            "input_ids": ids, "pixel_values": pixels, "attention_mask": mask,
            "token_type_ids": kinds,
        }  # fmt: skip

    spec, _ = with_prefix(spec_of(sampler=sampler if sampled else None), PLACEHOLDERS)
    for words in (1, 3, 11):
        made = spec.sample({"batch": 5, "text": words}, seed=1)
        assert ((made["prefix_input_ids"] == IMAGE).sum(-1) == 2).all()
        assert not (made["input_ids"] == IMAGE).any()
        assert made["attention_mask"].shape == (5, words)
        assert len(spec.run(made)["logits"][0]) == words


def test_kinds_that_differ_stay_an_input() -> None:
    kinds = KINDS.clone()
    kinds[0, 5] = 1
    whole = spec_of()
    spec, _ = with_prefix(replace(whole, examples=[{**whole.inputs, "token_type_ids": kinds}]), "4")
    assert "token_type_ids" in spec.inputs
    assert spec.examples[0]["token_type_ids"][0].tolist() == [0, 1, 0]


def test_a_text_alone_has_a_prefix() -> None:
    """A prompt that all questions share."""
    ids = torch.where(IDS == IMAGE, 3, IDS)
    whole = spec_of(inputs={**spec_of().inputs, "input_ids": ids})
    spec, first = with_prefix(whole, "2")
    assert first.count == 2
    assert spec.counts == {}


REFUSED = {
    "too few": ("3", {}, "hold all placeholders"),
    "nothing left": ("7", {}, "leave some tokens"),
    "no number": ("image", {}, "a number of tokens, or 'placeholders'"),
    "a fixed length": (PLACEHOLDERS, {"dynamic": {"input_ids": {0: "batch"}}}, "of any length"),
    "other counts": (
        PLACEHOLDERS,
        {"inputs": {"input_ids": torch.tensor([[4, 4, 1, 1], [4, 1, 1, 1]])}, "dynamic": {},
         "context": ()},
        "of any length",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_has_no_prefix_is_refused(name: str) -> None:
    asked, changes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        with_prefix(spec_of(**changes), asked)


def test_rows_with_other_numbers_of_placeholders_are_refused() -> None:
    ids = IDS.clone()
    ids[0, 1] = 3
    whole = spec_of(inputs={**spec_of().inputs, "input_ids": ids})
    with pytest.raises(InputError, match=r"rows of the examples hold \[1, 2\] of the id 4"):
        with_prefix(whole, PLACEHOLDERS)
    none = spec_of(inputs={**spec_of().inputs, "input_ids": torch.where(IDS == IMAGE, 3, IDS)})
    with pytest.raises(InputError, match="the examples hold no placeholders"):
        with_prefix(none, PLACEHOLDERS)


def test_positions_that_count_on_are_no_input() -> None:
    class Placed(Reader):
        def forward(self, *given: Any, position_ids: Tensor, **named: Any) -> dict[str, Tensor]:
            found = super().forward(*given, **named)
            return {**found, "places": found["logits"] * position_ids.sum(0)[..., None]}

    positions = torch.stack([torch.tensor([0, 1, 1, 2, 3, 4, 5])] * 3)[:, None].repeat(1, 2, 1)
    positions[1, :, 2] = 4  # a row of an image
    positions[..., 3:] = torch.arange(5, 9)
    base = spec_of()
    inputs = {**base.inputs, "input_ids": IDS[:1].repeat(2, 1), "position_ids": positions}
    inputs["attention_mask"] = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    inputs["position_ids"][:, 1, 5:] = 1  # where nothing counts
    dynamic = {**base.dynamic, "position_ids": {1: "batch", 2: "text"}}
    whole = replace(base, module=Placed(), inputs=inputs, dynamic=dynamic)
    expected = whole.run({**inputs, "position_ids": positions[:, :1].repeat(1, 2, 1)})
    spec, first = with_prefix(whole, PLACEHOLDERS)
    assert "position_ids" not in spec.inputs
    assert spec.inputs["prefix_position_ids"].shape == (3, 2, first.count)
    torch.testing.assert_close(
        spec.run(spec.inputs)["places"], expected["places"][:, first.count :]
    )
    positions[0, 0, 4] += 1
    other, _ = with_prefix(replace(base, module=Placed(), inputs=inputs, dynamic=dynamic), "3")
    assert other.inputs["position_ids"].shape == (3, 2, 4)


def test_what_grows_are_the_ids() -> None:
    spec, _ = with_prefix(spec_of(decode="token_type_ids"), PLACEHOLDERS)
    assert spec.decode is None
    spec, _ = with_prefix(spec_of(decode="input_ids"), PLACEHOLDERS)
    assert (spec.decode, spec.decode_where_possible) == ("input_ids", False)
