"""Which sums over multiplications the census takes for products of matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.capture.census import census
from crossfuse.export.capture.summed_factors import SummedFactors

Q, K, V = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)


def ends(left: Tensor, right: Tensor, axes: list[int]) -> bool:
    """The sum over these axes of a multiplication ends a product of the two."""
    sums = SummedFactors()
    made = left * right
    assert sums.multiplied("aten::mul", (left, right), made) is None
    scaled = made / 2
    assert sums.multiplied("aten::div", (made, 2), scaled) is None
    found = sums.multiplied("aten::sum", (scaled, axes), scaled.sum(axes))
    assert found is None or (found[0] is left and found[1] is right)
    return found is not None


def test_which_sums_are_products() -> None:
    rows, columns = Q[:, :, None], K[:, None]
    assert ends(rows, columns, [-1])
    assert ends(columns, rows, [3])
    assert ends(rows.expand(-1, -1, 5, -1), columns.expand(-1, 3, -1, -1), [-1])
    assert not ends(rows, columns, [2])  # the queries have no such axis
    assert not ends(Q, Q, [-1])  # a norm
    assert not ends(Q.softmax(1), Q[:, :, :1], [1])  # a weighted sum
    assert not ends(Q[:, :, None, :1], K[:, None], [-1])  # only one varies along what is summed
    sums = SummedFactors()
    assert sums.multiplied("aten::sum", (Q, [1]), Q.sum(1)) is None


class Summed(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(q, k, v)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return (q[:, :, None] * k[:, None]).sum(-1)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda q, k, v: (scores(q, k).softmax(-1)[..., None] * v[:, None]).sum(2), 1),
        (lambda q, k, v: (v[:, None] * scores(q, k).softmax(-1)[..., None]).sum(2), 1),
        (lambda q, k, v: scores(q, k).softmax(-1) @ v, 1),
        (lambda q, k, v: ((q @ k.mT).softmax(-1)[..., None] * v[:, None]).sum(2), 1),
        (lambda q, k, v: scores(q, k).relu() @ v, 0),
        (lambda q, k, v: ((q @ k.mT).relu()[..., None] * v[:, None]).sum(2), 0),
        (lambda q, k, v: (v.softmax(1) * v).sum(1), 0),
    ],
    ids=["both", "values first", "scores", "values", "relu", "relu and values", "pooling"],
)
def test_attentions_with_summed_products(function: Callable, count: int) -> None:
    found = census(Summed(function), {"q": Q, "k": K, "v": V})
    assert [(s.form, s.normal) for s in found] == [("products", True)] * count
