"""The stack of running modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.capture.module_paths import module_stack


class Note(nn.Module):
    """Writes down where it runs."""

    def __init__(self, stack: list[str], seen: list[str]) -> None:
        super().__init__()
        self.stack, self.seen = stack, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.stack[-1])
        if x.sum() > 100:
            raise ValueError("too much")
        return x


def test_the_last_is_the_innermost() -> None:
    seen: list[str] = []
    stack: list[str] = []
    note = Note(stack, seen)
    root = nn.Sequential(nn.Sequential(note), nn.Identity())
    with module_stack(root) as running:
        note.stack = running
        root(torch.ones(2))
        assert running == [""]
        with pytest.raises(ValueError, match="too much"):
            root(torch.full((2,), 100.0))
        assert running == [""], "a module that raises is left, too"
    assert seen == ["0.0", "0.0"]


def test_hooks_are_gone_afterwards() -> None:
    root = nn.Sequential(nn.Identity())
    with module_stack(root) as running:
        pass
    root(torch.ones(2))
    assert running == [""]
    assert not root._forward_pre_hooks
    assert not root[0]._forward_hooks
