"""What a module keeps between runs, put back."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.traced_for_tests import WIDTH, Block, exported_equal, inputs_of, spec_of
from torch import Tensor, nn

from crossfuse.export.capture.module_state import ModuleState, kept_state


class Keeping(nn.Module):
    """Everything that forwards are seen to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))
        self.linear = nn.Linear(2, 2)
        self.table = None
        self.masks: dict[int, Tensor] = {1: torch.ones(1)}
        self.order = OrderedDict(a=1)
        self.cache = SimpleNamespace(keys=[], length=0)
        self.window = torch.zeros(2)

    def forward(self) -> None:
        self.steps += 1
        self.table = torch.ones(3)
        self.masks[7] = torch.ones(7)
        self.order.move_to_end("a")
        self.cache.keys.append(torch.ones(1))
        self.cache.length += 1
        self.window[0] = 5
        self.late = "new"
        self.register_buffer("lazy", torch.ones(1))


def test_all_that_a_run_leaves_is_gone_again() -> None:
    module = Keeping()
    masks, window, weight = module.masks, module.window, module.linear.weight
    with kept_state(module) as state:
        module()
        state.restore()
        assert module.table is None
        module()
    assert float(module.steps) == 0
    assert module.masks is masks
    assert list(masks) == [1]
    assert (module.cache.keys, module.cache.length) == ([], 0)
    assert module.window is window
    assert not window.any()
    assert module.linear.weight is weight
    assert not hasattr(module, "late")
    assert not hasattr(module, "lazy")
    module()
    assert float(module.steps) == 1


def test_attributes_alone_come_back_while_tensors_are_traced() -> None:
    module = Keeping()
    state = ModuleState(module)
    module()
    state.restore_attributes(buffers=False)
    assert module.table is None
    assert float(module.steps) == 1
    assert hasattr(module, "lazy")


def test_hooks_and_the_mode_are_not_state() -> None:
    module = Keeping()
    state = ModuleState(module)
    module.eval()
    handle = module.register_forward_hook(lambda *_: None)
    state.restore()
    assert not module.training
    assert len(module._forward_hooks) == 1
    handle.remove()


class Stateful(Block):
    """A table added to the queries, kept in one of the ways of public code."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.length, self.table = None, None
        self.largest = 0
        self.tables: dict[int, Tensor] = {}
        self.runs = 0

    def made(self, n: int) -> Tensor:
        return torch.arange(n, dtype=self.q.weight.dtype).cos()[:, None]

    def kept(self, n: int) -> Tensor:
        if self.how == "by length":
            if self.length != n or self.table.dtype != self.q.weight.dtype:
                self.length, self.table = n, self.made(n)
        elif self.how == "grown":
            if n > self.largest:
                self.largest, self.table = n, self.made(n)
            return self.table[:n]
        elif self.how == "in a dict":
            if n not in self.tables:
                self.tables[n] = self.made(n)
            return self.tables[n]
        elif self.table is None:
            self.table = self.made(n)
        return self.table

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x + self.kept(x.shape[1]), y)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["by length", "grown", "in a dict", "once"])
def test_what_eager_runs_leave_specialises_nothing(how: str, tmp_path: Path) -> None:
    module = Stateful(how)
    exported_equal(spec_of(module), tmp_path / "b")
    assert module.runs == 0
    assert module.table is None
    assert not module.tables


@pytest.mark.slow
def test_a_table_that_the_user_left_specialises_nothing(tmp_path: Path) -> None:
    module = Stateful("by length").eval()
    with torch.no_grad():
        module(**inputs_of())
    exported_equal(spec_of(module), tmp_path / "b")
    assert module.length == 3
    assert module.q.in_features == WIDTH


class Noting(nn.Module):
    """Adds hooks at its first run, and marks that they are there, as libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, x: Tensor) -> list[float]:
        noted: list[float] = []
        if not hasattr(self, "hooked"):
            self.hooked = True
            for layer in self.layers:
                layer.register_forward_hook(lambda *_: self.noted.append(1.0))
        self.noted = noted
        for layer in self.layers:
            x = layer(x)
        return noted


def test_hooks_that_a_run_adds_go_with_their_flag_and_others_stay() -> None:
    module, seen = Noting(), []
    own = module.layers[0].register_forward_hook(lambda *_: seen.append(1))
    for _ in range(2):
        with kept_state(module):
            assert module(torch.ones(1)) == [1.0, 1.0]
    assert module(torch.ones(1)) == [1.0, 1.0]
    assert len(seen) == 3
    with kept_state(module):
        own.remove()
    module(torch.ones(1))
    assert len(seen) == 3
