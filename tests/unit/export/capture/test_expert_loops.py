"""Loops over the experts that were hit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.traced_for_tests import WIDTH, Block, exported_equal, spec_of
from torch import Tensor, nn

from crossfuse.export.capture.expert_loops import MOST_EXPERTS, all_experts

EXPERTS = 5


def rows_of_a_list(e: nn.ModuleDict, h: Tensor, mask: Tensor, w: Tensor, out: Tensor) -> None:
    for expert in torch.greater(mask.sum((-1, -2)), 0).nonzero():
        place, token = torch.where(mask[expert].squeeze(0))
        current = h[None, token].reshape(-1, h.shape[-1])
        out.index_add_(0, token, e[f"e{expert[0]}"](current) * w[token, place, None])


def numbers_of_a_list(e: nn.ModuleDict, h: Tensor, mask: Tensor, w: Tensor, out: Tensor) -> None:
    for expert in mask.sum((-1, -2)).nonzero().flatten().tolist():
        place, token = torch.where(mask[expert])
        if token.numel() == 0:
            continue
        out.index_add_(0, token, e[f"e{expert}"](h[token]) * w[token, place, None])


def a_sentinel(e: nn.ModuleDict, h: Tensor, mask: Tensor, w: Tensor, out: Tensor) -> None:
    for hit in mask.sum((-1, -2)).nonzero(as_tuple=False):
        expert = int(hit.item())
        if expert == EXPERTS:
            continue
        place, token = torch.where(mask[expert])
        out.index_add_(0, token, e[f"e{expert}"](h[token]) * w[token, place, None])


class Experts(nn.Module):
    def __init__(self, run: Callable[..., None]) -> None:
        super().__init__()
        self.attention, self.gate = Block(), nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleDict(
            {
                f"e{i}": nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
                for i in range(EXPERTS)
            }
        )
        self.run = run

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.attention(x, y)
        flat = h.reshape(-1, WIDTH)
        weights, chosen = self.gate(flat).softmax(-1).topk(2, -1)
        mask = F.one_hot(chosen, EXPERTS + 1).permute(2, 1, 0)
        out = torch.zeros_like(flat)
        self.run(self.experts, flat, mask[:EXPERTS] if self.run is not a_sentinel else mask,
                 weights, out)  # fmt: skip
        return h + out.view_as(h)


@pytest.mark.parametrize(
    "run",
    [
        rows_of_a_list,
        pytest.param(numbers_of_a_list, marks=pytest.mark.slow),
        pytest.param(a_sentinel, marks=pytest.mark.slow),
    ],
)
def test_loops_over_experts(run: Callable[..., None], tmp_path: object) -> None:
    exported_equal(spec_of(Experts(run)), tmp_path)  # type: ignore[arg-type]


def test_every_index_of_a_vector_comes() -> None:
    hit = torch.tensor([0, 1, 0, 1])
    with all_experts():
        rows = list(hit.nonzero())
        numbers = list(hit.nonzero().flatten())
    assert rows == [[0], [1], [2], [3]]
    assert numbers == [0, 1, 2, 3]
    matrix = torch.randn(4, 3)
    for i, row in enumerate(rows):
        assert torch.equal(matrix[row], matrix[torch.tensor([i])])
        assert row.item() == row[0] == i
    assert [row.tolist() for row in hit.nonzero()] == [[1], [3]]


def test_other_lists_are_what_they_were() -> None:
    with all_experts():
        assert [row.tolist() for row in torch.eye(2).nonzero()] == [[0, 0], [1, 1]]
        assert len(list(torch.ones(MOST_EXPERTS + 1).nonzero())) == MOST_EXPERTS + 1
        assert len(list(torch.zeros(MOST_EXPERTS + 1).nonzero())) == 0
