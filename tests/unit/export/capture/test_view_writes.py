"""Writes in functional form: the program still computes what it did, whatever was written, in which
order, and whoever looked at the tensor before."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from crossfuse.export.capture.view_writes import functional_writes, written_over

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda t: t[..., 1:3],
    "rows": lambda t: t[:2],
    "select": lambda t: t[..., 0],
    "last": lambda t: t[-1],
    "transpose": lambda t: t.transpose(0, -1),
    "permute": lambda t: t.permute(*range(1, t.ndim), 0),
    "unsqueeze": lambda t: t.unsqueeze(1),
    "step": lambda t: t[::2],
}
WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "fill": lambda t: t.fill_(0.5),
    "copy": lambda t: t.copy_(t.detach().clone() * 3 + 1),
    "broadcast": lambda t: t.copy_(torch.ones(1, dtype=torch.float64) / 3),
    "add": lambda t: t.add_(1.5),
    "scale": lambda t: t.mul_(0.5),
    "clamp": lambda t: t.clamp_(max=0.25),
}


def program(seed: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Views of a new tensor and of each other, written and read in any order."""
    rng = random.Random(seed)
    plan = [
        (rng.choice(["view", "view", "write", "write", "read"]), rng.random(), rng.random())
        for _ in range(rng.randint(3, 9))
    ]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        known, read = [x * 2], []
        for what, which, how in plan:
            tensor = known[int(which * len(known))]
            if what == "view":
                if tensor.ndim and min(tensor.shape) > 0:
                    known.append(list(VIEWS.values())[int(how * len(VIEWS))](tensor))
            elif what == "write":
                known.append(list(WRITES.values())[int(how * len(WRITES))](tensor))
            else:
                read.append(tensor.sin())
        return (*read, *(t.cos() for t in known))

    return run


def written(graph: fx.Graph) -> list[fx.Node]:
    return [
        n for n in graph.nodes if isinstance(n.target, OpOverload) and n.target._schema.is_mutable
    ]


def checked(function: Callable[[Tensor], object]) -> int:
    """Transform and compare; how many writes are left."""
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    traced = make_fx(function)(x)
    expected = traced(x)
    functional_writes(traced.graph)
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.copy.default:
            node.target = written_over
    traced.graph.lint()
    traced.recompile()
    torch.testing.assert_close(traced(x), expected, rtol=0, atol=0)
    return len(written(traced.graph))


@pytest.mark.parametrize("seed", range(60))
def test_random_writes(seed: int) -> None:
    assert checked(program(seed)) == 0


def assigned_parts(x: Tensor) -> object:
    out = x.new_zeros(x.shape[0] + 1, x.shape[1] + 1)
    out[:-1, :-1] = x[..., 0]
    out[:-1, -1] = x.sum((1, 2))
    out[-1, :-1] += x.mean((0, 2))
    return out


def diagonal(x: Tensor) -> object:
    scores = torch.matmul(x, x.mT)
    scores.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return scores.softmax(-1)


def parts(x: Tensor) -> object:
    y = x + 1
    a, b = y.unbind(0)[:2]
    a.mul_(2)
    y[1] = 7
    return a, b, y


@pytest.mark.parametrize("function", [assigned_parts, diagonal])
def test_as_people_write_it(function: Callable[[Tensor], object]) -> None:
    assert checked(function) == 0


def writes_through_view(x: Tensor) -> object:
    y = x * 2
    y.view(-1)[3:9] = 1.0
    return y


def writes_into_input(x: Tensor) -> object:
    y = x.clone()
    x[0] = 1
    return y + x


@pytest.mark.parametrize("function", [writes_through_view, writes_into_input, parts])
def test_others_stay(function: Callable[[Tensor], object]) -> None:
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    traced = make_fx(function)(x)
    expected = traced(x.clone())
    functional_writes(traced.graph)
    assert written(traced.graph)
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.copy.default:
            node.target = written_over
    traced.recompile()
    torch.testing.assert_close(traced(x.clone()), expected, rtol=0, atol=0)
