"""Lists of a batch of features that stay one tensor while a model is traced."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.llava import modeling_llava

from crossfuse.export.sources.huggingface.joined_rows import joined_rows
from crossfuse.export.sources.huggingface.patches import our_patches


class Joins(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        listed = getattr(modeling_llava, "list", list)
        return torch.cat(listed(2 * x), dim=0)


def test_the_number_of_rows_stays_open() -> None:
    x, rows = torch.randn(2, 3, 4), torch.export.Dim("rows", min=1, max=9)
    with joined_rows():
        program = torch.export.export(Joins(), (x,), dynamic_shapes=({0: rows},), strict=False)
    for count in (1, 5):
        other = torch.randn(count, 3, 4)
        assert torch.equal(program.module()(other), Joins()(other))
    assert not hasattr(modeling_llava, "list")


def test_other_lists_are_lists() -> None:
    with joined_rows():
        listed = modeling_llava.list
        assert listed((1, 2)) == [1, 2]
        assert len(listed(torch.ones(3, 2, 2))) == 3


class Splits(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        counts, found = mask.sum(1).tolist(), x[mask] * 2
        if self.way == "torch":
            return torch.cat(torch.split(found, counts), dim=0)
        if self.way == "named":
            return torch.cat(found.split(split_size=counts, dim=0))
        return torch.cat([part + 1 for part in found.split(counts)], 0)


@pytest.mark.parametrize("way", ["torch", "named", "method"])
def test_counts_of_rows_stay_open(way: str) -> None:
    rows, x = torch.export.Dim("rows", min=1, max=9), torch.randn(3, 5, 4)
    mask = torch.rand(3, 5) > 0.5
    module = Splits(way)
    with joined_rows():
        program = torch.export.export(
            module, (x, mask), dynamic_shapes=({0: rows}, {0: rows}), strict=False
        )
    for count in (1, 4):
        given = (torch.randn(count, 5, 4), torch.rand(count, 5) > 0.3)
        assert torch.equal(program.module()(*given), module(*given))


def test_counts_are_numbers_elsewhere() -> None:
    with joined_rows():
        assert torch.tensor([1, 2]).tolist() == [1, 2]
        parts = torch.ones(3, 2).split([1, 2])
        assert [len(part) for part in parts] == [1, 2]
        assert len(torch.ones(4).split(2)) == 2


def test_images_without_padding() -> None:
    torch.manual_seed(0)
    for kind in ("Idefics3", "SmolVLM", "Idefics2"):
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50,
                "pad_token_id": 0, "head_dim": 8}  # fmt: skip
        config = getattr(transformers, f"{kind}Config")(
            vision_config=vision, text_config=text, image_token_id=49
        )
        model = getattr(transformers, f"{kind}Model")(config).eval()
        pixels, seen = torch.randn(2, 2, 3, 32, 32), torch.ones(2, 2, 32, 32).long()
        seen[1, 0, 24:] = 0
        with torch.no_grad():
            expected = torch.cat(model.get_image_features(pixels, seen).pooler_output)
            with our_patches(all_real=True):
                made = torch.cat(model.get_image_features(pixels, seen).pooler_output)
        assert torch.allclose(made, expected, atol=1e-6), kind
