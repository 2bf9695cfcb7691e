"""What comes to the outputs of an eager run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.capture.census import census
from crossfuse.export.capture.flow import Flow


def test_through_operators_and_views() -> None:
    flow = Flow()
    x, table = torch.ones(2), torch.zeros(2, 2)
    first = x + 1
    flow.note([x], [first], [0])
    second = x * 2
    flow.note([x], [second], [1])
    row = table[0]
    flow.note([table], [row], [])
    flow.note([row, first], [row.copy_(first)], [])
    assert flow.behind([table]) == {0}
    assert flow.behind([second]) == {1}
    assert flow.behind([x]) == set()


def test_a_number_that_is_read_leads_anywhere() -> None:
    flow = Flow()
    x = torch.ones(1)
    made = x + 1
    flow.note([x], [made], [0])
    flow.note([made], [2.0], [])
    assert flow.behind([x]) == {0}


class Heads(nn.Module):
    """Attention, of which one result is thrown away, and one over two groups of keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        F.scaled_dot_product_attention(q, k, v)
        first, second = k[:, :, :2], k[:, :, 2:]
        scores = torch.cat([q @ first.mT, q @ second.mT], -1).softmax(-1)
        return scores[..., :2] @ v[:, :, :2] + scores[..., 2:] @ v[:, :, 2:]


def test_an_attention_over_two_groups_of_keys_is_one() -> None:
    inputs = {name: torch.randn(1, 2, 5, 4) for name in "qkv"}
    (sighting,) = census(Heads(), inputs)
    assert sighting.form == "products"
    assert sighting.reaches
