"""Shortcuts of tracing: the program is the one that PyTorch traces without, with the lines of the
user's code."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import proxy
from torch.fx.experimental import proxy_tensor

from crossfuse.export.capture import tracing_shortcuts as shortcuts


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(8), nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        images = self.conv(x[:, None].expand(-1, 2, -1, -1)).to(memory_format=torch.channels_last)
        return self.norm(images.mean(1) + x) + helper(x)


def helper(x: Tensor) -> Tensor:
    return F.silu(x.transpose(0, 1).contiguous()).transpose(0, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), Inner()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        split = y.unflatten(-1, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(split, split, split).transpose(1, 2).flatten(2)


def traced() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    axes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}
    with torch.no_grad():
        return torch.export.export(
            Net().eval(), (torch.randn(3, 5, 8),), dynamic_shapes=(axes,), strict=False
        )


def lines(program: torch.export.ExportedProgram) -> list[str]:
    return [
        f"{node.format_node()} {getattr(node.meta.get('val'), 'shape', None)} "
        f"{node.meta['val'].stride() if isinstance(node.meta.get('val'), Tensor) else ''} "
        f"{node.meta.get('stack_trace')} {node.meta.get('nn_module_stack')}"
        for node in program.graph.nodes
    ]


def test_the_program_is_the_one_without() -> None:
    theirs = traced()
    with shortcuts.tracing_shortcuts():
        ours = traced()
    assert lines(ours) == lines(theirs)
    assert ours.range_constraints == theirs.range_constraints
    told = [line for line in lines(ours) if "in forward\n    return self.norm(" in line]
    assert told, "the stack holds frames of forward, with their lines"
    x = torch.randn(2, 7, 8)
    assert torch.equal(ours.module()(x), theirs.module()(x))


def test_everything_is_put_back() -> None:
    places = [
        (proxy, "CapturedTraceback"),
        (proxy_tensor, "_extract_tensor_metadata"),
        (torch._prims_common, "is_contiguous"),
        (FakeTensorMode, "avoid_device_init"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    cached = torch._dynamo.config.fake_tensor_cache_enabled
    with contextlib.suppress(ValueError), shortcuts.tracing_shortcuts():
        assert all(vars(o)[n] is not b for (o, n), b in zip(places, before, strict=True))
        assert not torch._dynamo.config.fake_tensor_cache_enabled
        raise ValueError
    assert [vars(owner)[name] for owner, name in places] == before
    assert torch._dynamo.config.fake_tensor_cache_enabled == cached


def test_contiguity_is_asked_once_for_a_layout() -> None:
    asked: list[object] = []

    def ask(a: object, false_if_dde: bool = False) -> bool:
        asked.append(a)
        return True

    remembering = shortcuts._remembered(ask)
    with FakeTensorMode():
        first, alike, other = torch.empty(2, 3), torch.empty(2, 3), torch.empty(3, 2).t()
    assert all(remembering(a) for a in (first, alike, other, first))
    assert asked == [first, other]
    assert remembering(first, True)
    real = torch.empty(2, 3)
    assert remembering(real)
    assert remembering(real)
    assert len(asked) == 5, "real tensors are asked each time"


def test_without_these_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(proxy, "_STACK_TRACE_ANCHORS")
    with shortcuts.tracing_shortcuts():
        assert proxy.CapturedTraceback.__module__ == "torch.utils._traceback"
