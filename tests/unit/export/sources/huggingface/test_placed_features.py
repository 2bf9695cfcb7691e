"""Features that go to the first tokens row by row are where the library puts them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.placed_features import First, placed_features

FIRST, WIDTH, TOKEN = 5, 3, 7


class Merge(nn.Module):
    """Tokens with features in the place of placeholders, and other masked tensors.

    Args:
        expanded: the mask is as wide as the tokens.
    """

    def __init__(self, expanded: bool) -> None:
        super().__init__()
        self.embed, self.expanded = nn.Embedding(9, WIDTH), expanded

    def forward(self, first: Tensor, rest: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.cat([first, rest], 1)
        x = self.embed(ids)
        mask = (ids == TOKEN)[..., None]
        x = x.masked_scatter(mask.expand_as(x) if self.expanded else mask, features.flatten(0, 1))
        other = features.masked_scatter(features > 0, -features)
        return x, other


@pytest.mark.parametrize("expanded", [False, True])
def test_traced_features_are_where_they_are_in_eager(expanded: bool) -> None:
    torch.manual_seed(0)
    model = Merge(expanded).eval()
    first = torch.tensor([[7, 1, 7, 7, 2], [0, 7, 7, 7, 1]])
    rows, words = torch.export.Dim("b"), torch.export.Dim("t", min=2)
    given = first, torch.randint(0, 7, (2, 4)), torch.randn(2, 3, WIDTH)
    dims = {"first": {0: rows}, "rest": {0: rows, 1: words}, "features": {0: rows}}
    with placed_features(First(FIRST, (4, 3))):
        program = torch.export.export(model, given, dynamic_shapes=dims, strict=False)
    placed = [node.target for node in program.graph.nodes if "masked_scatter" in str(node.target)]
    assert len(placed) == 1
    given = first.repeat(2, 1), torch.randint(0, 7, (4, 6)), torch.randn(4, 3, WIDTH)
    for found, expected in zip(program.module()(*given), model(*given), strict=True):
        torch.testing.assert_close(found, expected)


def test_without_first_tokens_nothing_is_replaced() -> None:
    original = torch.Tensor.masked_scatter
    with placed_features(None):
        assert torch.Tensor.masked_scatter is original
    with placed_features(First(FIRST)):
        assert torch.Tensor.masked_scatter is not original
    assert torch.Tensor.masked_scatter is original
