"""What a model refuses, in its own words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.tried import refusal


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            raise ValueError("two rows at most")
        return x.add_(1)


def test_the_models_own_words_and_its_inputs_as_they_were() -> None:
    x = torch.zeros(2)
    assert refusal(Picky(), {"x": x}) is None
    assert torch.equal(x, torch.zeros(2))
    assert refusal(Picky(), {"x": torch.zeros(3)}) == "ValueError: two rows at most"
    assert "unexpected keyword" in (refusal(Picky(), {"y": x}) or "")
