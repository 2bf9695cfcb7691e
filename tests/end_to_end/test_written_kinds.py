"""Attention as people write it: softmaxes to other bases, einsums of several operands, windows in
blocks, repeated sinks. Each is fused and equal to float64 at other sizes than the example's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.traced_for_tests import HEADS, WIDTH, Block, exported_equal, spec_of
from torch import Tensor, nn

LOG2_E = math.log2(math.e)
BLOCK = 4


def seen(q: Tensor, k: Tensor) -> Tensor:
    """Hides every third key, and those far behind; the first is always there."""
    rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    return (keys % 3 != 1) & (keys <= rows + 4)


def scored(q: Tensor, k: Tensor, fill: float = -math.inf) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen(q, k), fill)


def shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = scored(q, k) * LOG2_E
    weights = torch.exp2(x - x.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True) @ v


def as_kernels_do(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = scored(q, k, -1e30) * LOG2_E
    weights = torch.exp2(x - x.max(-1).values[..., None])
    return (weights @ v) / weights.sum(-1)[..., None]


def of_logarithms(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = scored(q, k, -3e4) * LOG2_E
    return torch.exp2(x - torch.log2(torch.exp2(x).sum(-1, keepdim=True))) @ v


def to_base_10(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = scored(q, k)
    weights = 10 ** (x - x.amax(-1, keepdim=True))
    return weights * weights.sum(-1, keepdim=True).reciprocal() @ v


def below_1(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = 0.5 ** -scored(q, k)
    return weights / weights.sum(-1, keepdim=True) @ v


def logarithm_written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = scored(q, k)
    largest = x.amax(-1, keepdim=True)
    return (x - (largest + (x - largest).exp().sum(-1, keepdim=True).log())).exp() @ v


def numbers(*shape: int) -> Tensor:
    return torch.linspace(0.5, 1.5, math.prod(shape)).reshape(shape)


def by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = torch.einsum("bhld,bhsd,h->bhls", q, k, numbers(HEADS).to(q.dtype))
    weights = x.masked_fill(~seen(q, k), -math.inf).softmax(-1)
    return torch.einsum("bhls,bhsd,h->bhld", weights, v, numbers(HEADS).to(q.dtype))


def bilinear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    size = q.shape[-1]
    x = torch.einsum("bhld,bhse,de->bhls", q, k, numbers(size, size).to(q.dtype) / size)
    return torch.einsum("bhls,bhsd->bhld", x.masked_fill(~seen(q, k), -1e9).softmax(-1), v)


def with_the_projection(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = numbers(HEADS, q.shape[-1], WIDTH).to(q.dtype) - 1
    weights = scored(q, k).softmax(-1)
    found = torch.einsum("...hls,...hsd,hdo->...lo", weights, v, out)
    return found.unflatten(-1, (HEADS, -1)).transpose(1, 2)


ATTENDS = [
    *(shifted, as_kernels_do, of_logarithms, to_base_10, below_1, logarithm_written_out),
    *(by_head, bilinear, with_the_projection),
]


@pytest.mark.slow
@pytest.mark.parametrize("attend", ATTENDS, ids=lambda f: f.__name__)
def test_softmaxes_and_products(attend: Callable[..., Tensor], tmp_path: Path) -> None:
    exported_equal(spec_of(Block(attend)), tmp_path / "b")


class Windows(Block):
    """Attention of a sequence within windows, each seen by a part of the queries."""

    def __init__(self, keys: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in (self.q(x), self.k(x), self.v(x)))
        q, k, v = blocks(q), self.keys(k), self.keys(v)
        there = self.keys(torch.ones_like(x[..., :1, None]))[..., 0, 0] > 0
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~there[:, :, None, None], -1e9)
        out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.o(out[:, :n])


def blocks(t: Tensor) -> Tensor:
    """``[b, n, h, d]`` → ``[b, blocks, 4, h, d]``, padded."""
    return F.pad(t, (0, 0, 0, 0, 0, -t.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))


def and_before(t: Tensor) -> Tensor:
    """With the block before."""
    t = blocks(t)
    before = torch.cat([torch.zeros_like(t[:, :1]), t], 1)[:, :-1]
    return torch.cat([before, t], 2)


def unfolded(t: Tensor) -> Tensor:
    """Half a block more on either side."""
    half, n = BLOCK // 2, t.shape[1]
    t = F.pad(t, (0, 0, 0, 0, half, half + -n % BLOCK))
    return t.unfold(1, 2 * BLOCK, BLOCK).movedim(-1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [blocks, and_before, unfolded], ids=lambda f: f.__name__)
def test_windows(keys: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    def inputs(batch: int, n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(n)
        return {"x": torch.randn(batch, n, WIDTH, generator=generator)}

    dynamic = {"x": {0: "batch:1:8", 1: "n:1:64"}}
    spec = spec_of(Windows(keys), inputs=inputs(2, 6), dynamic=dynamic)
    points = [inputs(1, 9), inputs(3, 4), inputs(2, 1), inputs(2, 23)]
    exported_equal(spec, tmp_path / "b", points=points)


class Sunk(nn.Module):
    """A sink per head, repeated for heads that are merged with the batch."""

    def __init__(self, repeated: Callable[[Tensor, int, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.sink = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.repeated = repeated

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def merged(t: Tensor) -> Tensor:
            return t.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1)

        q, k, v = merged(self.q(x)), merged(self.k(y)), merged(self.v(y))
        sink = self.repeated(self.sink, x.shape[0], x.shape[1])
        weights = torch.cat([scored(q, k), sink], -1).softmax(-1)[..., :-1]
        return self.o((weights @ v).unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2))


REPEATED = {
    "repeat": lambda sink, batch, rows: sink.repeat(batch, rows, 1),
    "repeat of a vector": lambda sink, batch, rows: (
        sink.flatten().repeat(batch)[:, None, None].expand(-1, rows, -1)
    ),
    "expand": lambda sink, batch, rows: (
        sink[None].expand(batch, -1, rows, -1).reshape(batch * HEADS, rows, 1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("context", [(), ("y",)], ids=["whole", "split"])
@pytest.mark.parametrize("how", REPEATED)
def test_repeated_sinks(how: str, context: tuple[str, ...], tmp_path: Path) -> None:
    exported_equal(spec_of(Sunk(REPEATED[how]), context=context), tmp_path / "b")
