"""Lists of a batch of features that stay one tensor while a model is traced."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llava import modeling_llava

from crossfuse.export.sources.huggingface.joined_rows import joined_rows


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
