"""Outputs by tokens and by rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossfuse import ModelSpec
from crossfuse.export.sources.huggingface.prefix_inputs import with_prefix
from crossfuse.export.sources.huggingface.prefix_outputs import of_several, with_rows
from unit.export.sources.huggingface.test_prefix_inputs import Reader, spec_of


class ReadsTiles(Reader):
    """Gives what it made of each of three tiles of an image, too."""

    def forward(self, input_ids: Tensor, pixel_values: Tensor, **_: Any) -> dict[str, Tensor]:
        found = super().forward(input_ids, pixel_values[:, :, 0])
        return {**found, "tiles": self.look(pixel_values).transpose(1, 2).flatten(0, 1)}


def tiled() -> ModelSpec:
    whole = spec_of()
    inputs = {**whole.inputs, "pixel_values": torch.randn(2, 2, 3, 3)}
    dynamic = {name: dict(own) for name, own in whole.dynamic.items()}
    return ModelSpec(ReadsTiles(), inputs, dynamic, context=("pixel_values",))


def test_a_result_with_several_places_for_each_row_is_left_out() -> None:
    whole = tiled()
    assert whole.run(whole.inputs)["tiles"].shape[0] == 6
    assert of_several(whole) == ("tiles",)
    assert of_several(spec_of()) == ()
    spec, _ = with_prefix(whole, "5")
    assert spec.drop_outputs == ("tiles",)
    assert set(spec.run(spec.inputs)) == {"logits", "pooled", "image"}


def test_results_of_each_token() -> None:
    axes = {"input_ids": 1, "attention_mask": 1, "token_type_ids": 1}
    assert with_rows(spec_of(), axes) == ("logits",)
