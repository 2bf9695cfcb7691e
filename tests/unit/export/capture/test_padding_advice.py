"""What is said about sizes that have to be multiples, or must not be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.capture.guards import Guard
from crossfuse.export.capture.padding_advice import padding_advice
from crossfuse.export.capture.trace import capture
from crossfuse.spec.model_spec import ModelSpec


def padded_by_a_whole_block(x: Tensor) -> Tensor:
    """By 3 where the length is a multiple, which the branch leaves out."""
    padding = 3 - x.shape[1] % 3
    if padding < 3:
        x = F.pad(x, (0, 0, padding, 0))
    return x.unflatten(1, (-1, 3)).mean(2)


def in_blocks(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4)).mean(2)


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * 2


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (padded_by_a_whole_block, "pad by -n % 3 without a branch"),
        (in_blocks, r"F.pad\(x, \(0, -n % 4\)\) takes every n.*4\*NAME"),
    ],
    ids=lambda found: getattr(found, "__name__", None),
)
def test_the_padding_that_helps(function: Callable[[Tensor], Tensor], advice: str) -> None:
    x = torch.randn(2, 8, 6)
    spec = ModelSpec(Applied(function), {"x": x}, {"x": {0: "b:1:8", 1: "n:1:64"}})
    with pytest.raises(InputError, match=advice):
        capture(spec)


def test_other_relations_have_none() -> None:
    n = sympy.Symbol("n", integer=True, positive=True)
    for relation in (n < 64, sympy.Eq(n, 5), n >= 2):
        assert padding_advice(Guard(relation, {n: "n"}, None)) is None
