"""Autocast, gradient modes, vmap, compiled and scripted parts, sizes as keys."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.traced_for_tests import WIDTH, Block, exported_equal, inputs_of, spec_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import crossfuse
from crossfuse import InputError
from crossfuse.export.capture.census import census
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.trace import capture
from crossfuse.export.capture.traceable import replaced, traceable

Run = Callable[["Around", Tensor, Tensor], Tensor]


class Around(nn.Module):
    def __init__(self, run: Run, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = Block() if inner is None else inner
        self.other = nn.Linear(WIDTH, WIDTH)
        self.run = run

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(self, x, y)


def narrow(s: Around, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = s.inner(x, y)
    return s.other(found.to(x.dtype))


@torch.autocast("cpu", enabled=False)
def decorated(s: Around, x: Tensor, y: Tensor) -> Tensor:
    return s.inner(x, y)


def nested(s: Around, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        with torch.no_grad():
            found = s.inner(x, y)
        return found + s.inner(found, y)


def saved(s: Around, x: Tensor, y: Tensor) -> Tensor:
    first = checkpoint(s.inner, x, y, use_reentrant=False)
    return checkpoint(s.inner, first, y, use_reentrant=True)


def mapped(s: Around, x: Tensor, y: Tensor) -> Tensor:
    return torch.vmap(lambda one, other: s.inner(one[None], other[None])[0])(x, y)


def plainly(s: Around, x: Tensor, y: Tensor) -> Tensor:
    return s.inner(x, y)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


@functools.cache
def decays(n: int) -> Tensor:
    return torch.arange(n).neg().exp()


def cached(s: Around, x: Tensor, y: Tensor) -> Tensor:
    return s.inner(x * decays(x.shape[1])[:, None].to(x.dtype), y)


def test_a_replaced_attribute_comes_back() -> None:
    class Owner:
        value = 1

    with replaced(Owner, "value", 2):
        assert Owner.value == 2
    assert Owner.value == 1


@without_fast_paths()
def test_contexts_leave_no_sub_graphs() -> None:
    module = Around(nested).eval()
    program, _ = capture(spec_of(module))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("scaled_dot_product" in name for name in names) == 2
    assert not any("wrap_with" in name for name in names)
    assert [seen.module for seen in census(module, inputs_of())] == ["inner"] * 2


def test_a_vmapped_module_is_counted_where_it_is_mapped() -> None:
    module = Around(mapped).eval()
    assert [seen.module for seen in census(module, inputs_of())] == [""]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "fused"),
    [(narrow, 1), (decorated, 1), (nested, 2), (saved, 2), (mapped, 1), (cached, 1)],
)
def test_what_stands_around_attention_is_exported(run: Run, fused: int, tmp_path: Path) -> None:
    exported_equal(spec_of(Around(run)), tmp_path / "b", fused=fused)


@pytest.mark.slow
@pytest.mark.parametrize("attend", [F.scaled_dot_product_attention, by_hand])
@pytest.mark.parametrize("axis", [0, 1])
def test_vmapped_heads_are_fused(attend: Callable[..., Tensor], axis: int, tmp_path: Path) -> None:
    module = Block(torch.vmap(attend, in_dims=axis, out_dims=axis))
    exported_equal(spec_of(module), tmp_path / "b")


def closed_over(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that the mapped function closes over."""
    hidden = k[:, 0, :, 0] > 0.3
    return torch.vmap(lambda q, k, v: filled(q, k, hidden) @ v, in_dims=1, out_dims=1)(q, k, v)


def closed_over_further_in(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that a function closes over which the mapped one calls."""
    hidden = k[:, 0, :, 0] > 0.3

    def weights(q: Tensor, k: Tensor) -> Tensor:
        return filled(q, k, hidden)

    return torch.vmap(lambda q, k, v: weights(q, k) @ v, in_dims=1, out_dims=1)(q, k, v)


def of_a_partial(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.arange(k.shape[2]).to(q.dtype) / 8

    def attend(scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT * scale + bias).softmax(-1) @ v

    return torch.vmap(functools.partial(attend, 0.3), in_dims=1, out_dims=1)(q, k, v)


def filled(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    return (q @ k.mT / 3).masked_fill(hidden[:, None], -1e9).softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("attend", [closed_over, closed_over_further_in, of_a_partial])
def test_tensors_that_a_mapped_function_closes_over(
    attend: Callable[..., Tensor], tmp_path: Path
) -> None:
    exported_equal(spec_of(Block(attend)), tmp_path / "b")


@pytest.mark.slow
def test_compiled_parts_are_unwrapped(tmp_path: Path) -> None:
    compiled = {
        "part": (Around(plainly, torch.compile(Block())), "inner"),
        "whole": (torch.compile(Block()), "(root)"),
        "call": (Block(torch.compile(F.scaled_dot_product_attention)), "(root)"),
    }
    for name, (module, site) in compiled.items():
        bundle = exported_equal(spec_of(module), tmp_path / name)
        assert [row.site for row in bundle.ledger] == [site]


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q = self.q(x).view(x.shape[0], x.shape[1], 4, 8).transpose(1, 2)
        k = y.view(y.shape[0], y.shape[1], 4, 8).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)


@pytest.mark.slow
def test_scripted_parts_are_told(tmp_path: Path) -> None:
    module = Around(plainly, torch.jit.script(Scripted().eval()))
    with pytest.raises(InputError, match=r"TorchScript.*model, inner.*before torch.jit.script"):
        crossfuse.export(spec_of(module), tmp_path / "b")


class Converting(nn.Module):
    """Converts its gate as it runs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate, self.dtype = nn.Linear(3, 3), dtype

    def forward(self, x: Tensor) -> Tensor:
        self.gate = self.gate.to(self.dtype)
        return self.gate(x)


def test_conversions_that_change_nothing() -> None:
    module = Converting(torch.float32).eval()
    with traceable():
        program = torch.export.export(module, (torch.randn(2, 3),), strict=False)
    x = torch.randn(2, 3)
    assert torch.allclose(program.module()(x), module(x))


def test_other_conversions_are_named() -> None:
    told = "Linear is converted as the model runs: its weight from"
    with pytest.raises(TypeError, match=told), traceable():
        torch.export.export(Converting(torch.float64), (torch.randn(2, 3),), strict=False)
