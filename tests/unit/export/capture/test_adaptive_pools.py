"""Adaptive pools of open sizes are what PyTorch's are, at sizes that the trace did not have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.capture.adaptive_pools import adaptive_pools


class Pooled(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


def traced(pool: Callable[[Tensor], Tensor], rank: int, *, dynamic: bool = True) -> torch.fx.Graph:
    sizes = dict.fromkeys(range(2, rank), torch.export.Dim.AUTO) if dynamic else {}
    x = torch.randn(2, 3, *(7 + i for i in range(rank - 2)))
    graph = torch.export.export(Pooled(pool), (x,), dynamic_shapes=({**sizes},)).graph
    return graph


@pytest.mark.parametrize(
    ("pool", "counts"),
    [
        (lambda x: F.adaptive_avg_pool1d(x, 4), [4]),
        (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), [2, 3]),
        (lambda x: F.adaptive_avg_pool2d(x, (None, 3)), [None, 3]),
        (lambda x: F.adaptive_avg_pool3d(x, (2, 5, 3)), [2, 5, 3]),
        (lambda x: F.adaptive_max_pool1d(x, 3), [3]),
        (lambda x: F.adaptive_max_pool2d(x, (4, 2)), [4, 2]),
    ],
)
def test_the_same_at_every_size(pool: Callable[[Tensor], Tensor], counts: list[int | None]) -> None:
    graph = traced(pool, rank := 2 + len(counts))
    (node,) = (node for node in graph.nodes if "adaptive" in str(node.target))
    decomposition = adaptive_pools(graph)[node.target]
    for size in (1, 2, 3, 6, 20, 23):
        x = torch.randn(2, 3, *([size] * (rank - 2)), dtype=torch.float64)
        got = decomposition(x, counts)
        torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, pool(x))


def test_what_stays() -> None:
    assert not adaptive_pools(traced(lambda x: F.adaptive_avg_pool1d(x, 4), 3, dynamic=False))
    assert not adaptive_pools(traced(lambda x: F.adaptive_avg_pool1d(x, 1), 3))
    assert not adaptive_pools(
        traced(lambda x: F.adaptive_max_pool1d(x, 3, return_indices=True)[1], 3)
    )
