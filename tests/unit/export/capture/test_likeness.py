"""Calls that are alike, and calls that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.capture.likeness import likeness


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.function(x, y)


def kinds(function: Callable[[Tensor, Tensor], object], name: str) -> list[object]:
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=3, max=64)
    axes = {0: batch, 1: length}
    program = torch.export.export(
        Net(function), (torch.randn(3, 5, 8), torch.randn(3, 5, 8)), dynamic_shapes=(axes, axes)
    )
    calls = [node for node in program.graph.nodes if name in str(node.target)]
    return [likeness(node, list(dict.fromkeys(node.all_input_nodes))) for node in calls]


ALIKE = {
    "two tensors": lambda x, y: (F.silu(x), F.silu(y)),
    "in a loop": lambda x, y: F.silu(F.silu(F.silu(x + y))),
    "of a part": lambda x, y: (F.silu(x[:, 1:]), F.silu(y[:, 1:])),
}
UNLIKE = {
    "another type": lambda x, y: (F.silu(x), F.silu(y.double())),
    "another size": lambda x, y: (F.silu(x), F.silu(y[..., :4].contiguous())),
    "another symbol": lambda x, y: (F.silu(x), F.silu(y[:, 1:].contiguous())),
    "other strides": lambda x, y: (F.silu(x), F.silu(y.transpose(0, 1))),
    "another place in memory": lambda x, y: (F.silu(x[..., :4]), F.silu(y[..., 4:])),
}
NUMBERS = {
    "another number": lambda x, y: (F.leaky_relu(x, 0.1), F.leaky_relu(y, 0.2)),
    "the same twice": lambda x, y: (F.leaky_relu(x, 0.1), F.leaky_relu(x, 0.1)),
}


@pytest.mark.parametrize("what", ALIKE)
def test_alike(what: str) -> None:
    found = kinds(ALIKE[what], "silu")
    assert len(found) > 1
    assert None not in found
    assert len(set(found)) == 1


@pytest.mark.parametrize("what", UNLIKE)
def test_unlike(what: str) -> None:
    found = kinds(UNLIKE[what], "silu")
    assert len(set(found)) == len(found) == 2


def test_numbers_count() -> None:
    assert len(set(kinds(NUMBERS["another number"], "leaky_relu"))) == 2
    assert len(set(kinds(NUMBERS["the same twice"], "leaky_relu"))) == 1


def test_an_operand_twice_is_not_two_operands() -> None:
    found = kinds(lambda x, y: (torch.dist(x, x), torch.dist(x, y)), "dist")
    assert len(set(found)) == 2


def test_known_content_is_like_no_other() -> None:
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    with torch._subclasses.FakeTensorMode() as mode:
        node.meta["val"] = mode.from_tensor(torch.tensor(3))
    node.meta["val"].constant = torch.tensor(3)
    call = graph.call_function(torch.ops.aten.silu.default, (node,))
    assert likeness(call, [node]) is None
