"""Einsums of several operands: weights go to an activation first, and results are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.capture.census import census
from crossfuse.export.capture.einsum_order import WeightsFirst, order_of


@pytest.mark.parametrize(
    ("labels", "weights", "path"),
    [
        (["bld", "bsd", "d"], [False, False, True], [0, 2, 0, 1]),
        (["h", "bhld", "bhsd"], [True, False, False], [0, 1, 0, 1]),
        (["bhls", "bshd", "hdo"], [False, False, True], [1, 2, 0, 1]),  # most labels in common
        (["bl", "bs", "bd"], [False] * 3, [0, 1, 0, 1]),
        (["d", "de", "bd"], [True, True, False], [0, 2, 0, 1]),
    ],
)
def test_the_order(labels: list[str], weights: list[bool], path: list[int]) -> None:
    assert order_of(labels, weights) == path


class Weighted(nn.Module):
    """Attention whose scores are of three operands, and normalised by no softmax."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation
        sizes = {"d": 4, "h": 2, "e": 4}
        shape = [sizes[label] for label in equation.partition("->")[0].split(",")[-1]]
        self.weight = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        weights = torch.einsum(self.equation, q, k, self.weight).sigmoid()
        return torch.einsum("bhls,bhsd->bhld", weights, k)


@pytest.mark.parametrize(
    "equation", ["bhld,bhsd,d->bhls", "bhld,bhsd,h->bhls", "bhld,bhse,de->bhls"]
)
def test_the_attention_is_counted(equation: str) -> None:
    module = Weighted(equation)
    inputs = {"q": torch.randn(2, 2, 3, 4), "k": torch.randn(2, 2, 5, 4)}
    (sighting,) = census(module, inputs)
    assert not sighting.normal
    with torch.no_grad(), WeightsFirst(lambda tensor: tensor is module.weight):
        got = module(**inputs)
    torch.testing.assert_close(got, module(**inputs))
