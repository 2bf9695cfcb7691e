"""Assignments by a mask become fills in the exported program; others stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.passes.fill_assigned_masks import FillAssignedMasksPass

PUT = (torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Assigned(nn.Module):
    """Scores that are computed, changed and read."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.how(x * 2, mask).exp()


def whole(s: Tensor, mask: Tensor) -> Tensor:
    s[mask[:, None].expand_as(s)] = -torch.inf
    return s


def last_axes(s: Tensor, mask: Tensor) -> Tensor:
    s[:, :, torch.ones(s.shape[2], s.shape[3], dtype=torch.bool).triu(1)] = -1e4
    return s


def keys(s: Tensor, mask: Tensor) -> Tensor:
    s[..., torch.arange(s.shape[-1]) > 2] = -torch.inf
    return s


def first_axis(s: Tensor, mask: Tensor) -> Tensor:
    s[mask[:, 0, 0]] = -3.0
    return s


def a_tensor(s: Tensor, mask: Tensor) -> Tensor:
    return s.index_put((mask[:, None].expand_as(s),), s.new_full((1,), -7.0))


def through_a_view(s: Tensor, mask: Tensor) -> Tensor:
    s.transpose(2, 3)[:, :, torch.arange(s.shape[-1]) > 2] = 0.5
    return s


def program_of(how: Callable[[Tensor, Tensor], Tensor]) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 5, generator=generator) > 0.5
    mask[0, 0, 0], mask[1, 0, 0] = True, False
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(
        Assigned(how), (x, mask), dynamic_shapes=({0: batch}, {0: batch}), strict=False
    )
    return program, (x, mask)


def assignments(program: Any) -> int:
    return sum(node.target in PUT for node in program.graph.nodes)


@pytest.mark.parametrize(
    "how",
    [whole, last_axes, keys, first_axis, a_tensor, through_a_view],
    ids=lambda f: f.__name__,
)
def test_masks_fill(how: Callable[[Tensor, Tensor], Tensor]) -> None:
    program, inputs = program_of(how)
    expected = Assigned(how)(*inputs)
    assert assignments(program) == 1
    result = FillAssignedMasksPass()(program)
    assert result.modified
    assert assignments(result.program) == 0
    torch.testing.assert_close(result.program.module()(*inputs), expected, rtol=0, atol=0)


def by_place(s: Tensor, mask: Tensor) -> Tensor:
    s[:, :, torch.tensor([0, 2])] = 1.0
    return s


def added(s: Tensor, mask: Tensor) -> Tensor:
    return s.index_put((mask[:, None].expand_as(s),), s.new_ones(()), accumulate=True)


def nothing(s: Tensor, mask: Tensor) -> Tensor:
    return s + mask[:, None]


@pytest.mark.parametrize("how", [by_place, added, nothing], ids=lambda f: f.__name__)
def test_other_assignments_stay(how: Callable[[Tensor, Tensor], Tensor]) -> None:
    program, _ = program_of(how)
    before = assignments(program)
    result = FillAssignedMasksPass()(program)
    assert not result.modified
    assert result.program is program
    assert assignments(result.program) == before
