"""Lengths that are padded to whole blocks, at every length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import ModelSpec
from crossfuse.export.capture.block_sizes import even_chunks, whole_blocks
from crossfuse.export.capture.trace import capture

BLOCK = 4


def by_remainder(n: int) -> int:
    return (BLOCK - n % BLOCK) % BLOCK


def by_negative(n: int) -> int:
    return -n % BLOCK


def by_branch(n: int) -> int:
    return BLOCK - n % BLOCK if n % BLOCK != 0 else 0


class Blocks(nn.Module):
    """The sum over each token's block."""

    def __init__(self, padding: Callable[[int], int]) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, self.padding(x.shape[1])))
        blocks = padded.view(x.shape[0], padded.shape[1] // BLOCK, BLOCK, x.shape[2])
        sums = blocks + blocks.sum(2, keepdim=True)
        return sums.view(x.shape[0], -1, x.shape[2])[:, : x.shape[1]]


class Chunks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second, third = torch.cat([x, 2 * x, x + 1], dim=1).chunk(3, dim=1)
        return torch.stack([first, second, third], 1).flatten(2)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Blocks(by_remainder), marks=pytest.mark.slow),
        Blocks(by_negative),
        pytest.param(Blocks(by_branch), marks=pytest.mark.slow),
        Chunks(),
    ],
)
def test_at_every_length(module: nn.Module) -> None:
    spec = ModelSpec(
        module.eval(), {"x": torch.randn(2, 6, 3)}, {"x": {0: "batch:1:4", 1: "length:1:40"}}
    )
    program, _ = capture(spec)
    graph = program.module()
    for batch, length in ((1, 1), (3, 4), (2, 7), (1, 40)):
        x = torch.randn(batch, length, 3)
        assert torch.allclose(graph(x=x)[0], module(x), atol=1e-6)


def test_what_is_replaced_is_given_back() -> None:
    mod, chunk = vars(torch.SymInt)["__mod__"], Tensor.chunk
    x = torch.randn(7, 2)
    with whole_blocks(), even_chunks():
        assert vars(torch.SymInt)["__mod__"] is not mod
        assert [len(part) for part in x.chunk(3)] == [3, 3, 1]
        assert [part.shape[1] for part in torch.chunk(input=x, chunks=2, dim=1)] == [1, 1]
    assert vars(torch.SymInt)["__mod__"] is mod
    assert Tensor.chunk is chunk
