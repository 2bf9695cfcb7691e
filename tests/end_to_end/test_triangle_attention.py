"""Attention over pairs: extra batch axes in front of the heads, biases and masks broadcast over
them, by calls and by products; both directions at a batch of 1; axes moved by ``einsum``.

Equal to eager float64 at other sizes than the example's, each attention fused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime

WIDTH, HEADS = 16, 4
Way = Callable[..., Tensor]


def split(t: Tensor) -> Tensor:
    """``[b, i, j, c]`` → ``[b, i, h, j, d]``"""
    return t.unflatten(-1, (HEADS, -1)).transpose(2, 3)


def joined(t: Tensor) -> Tensor:
    return t.transpose(2, 3).flatten(3)


def call_with_a_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    added = bias[:, None] + torch.where(seen, 0.0, -1e9)[:, :, None, None].to(bias.dtype)
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), added))


def call_with_a_mask(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    mask = seen[:, :, None, None]
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), mask))


def call_with_heads_first(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (HEADS, -1)).permute(0, 3, 1, 2, 4) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, seen[:, None, :, None])
    return out.permute(0, 2, 3, 1, 4).flatten(3)


def call_over_six_axes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    q, k, v = (split(t).unflatten(2, (2, 2)) for t in (q, k, v))
    return joined(F.scaled_dot_product_attention(q, k, v).flatten(2, 3))


def einsum_with_ellipsis(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    scores = torch.einsum("...qc,...kc->...qk", split(q) / 2, split(k))
    scores = scores + (1e9 * (seen.to(q.dtype) - 1))[:, :, None, None] + bias[:, None]
    return joined(torch.einsum("...hqk,...hkc->...hqc", scores.softmax(-1), split(v)))


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    scores = split(q) @ split(k).mT / 2 + bias[:, None]
    return joined(scores.masked_fill(~seen[:, :, None, None], -torch.inf).softmax(-1) @ split(v))


def along_the_columns(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in (q, k, v))
    weights = (torch.einsum("bijhd,bkjhd->bjhik", q, k) / 2 + bias[:, None]).softmax(-1)
    return torch.einsum("bjhik,bkjhd->bijhd", weights, v).flatten(3)


def one_operand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bijc->bicj", t).mT for t in (q, k, v))
    return joined((split(q) @ split(k).mT / 2).softmax(-1) @ split(v))


WAYS: tuple[Way, ...] = (
    *(call_with_a_bias, call_with_a_mask, call_with_heads_first, call_over_six_axes),
    *(einsum_with_ellipsis, products, along_the_columns, one_operand),
)


class Triangle(nn.Module):
    """One way of attention over pairs."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.bias = nn.Linear(WIDTH, HEADS)

    def forward(self, pair: Tensor, mask: Tensor) -> Tensor:
        bias = self.bias(pair).permute(0, 3, 1, 2)
        return self.way(self.q(pair), self.k(pair), self.v(pair), bias, mask > 0)


class Triangles(nn.Module):
    """Each way on the same pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleDict({way.__name__: Triangle(way) for way in WAYS})

    def forward(self, pair: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {f"of_{name}": way(pair, mask) for name, way in self.ways.items()}


def pairs(batch: int, size: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, size, size, generator=generator) > 0.4).long()
    mask[..., 0] = 1
    return {"pair": torch.randn(batch, size, size, WIDTH, generator=generator), "mask": mask}


def same_at(bundle: crossfuse.Bundle, module: nn.Module, given: list[dict[str, Tensor]]) -> None:
    module = module.double()
    with runtime.load(bundle.path) as session:
        for inputs in given:
            got = session.run(**{name: t.numpy() for name, t in inputs.items()})
            with torch.no_grad():
                truth = module(
                    **{n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
                )
            for name, expected in truth.items():
                np.testing.assert_allclose(
                    got[name], expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=name
                )


@pytest.mark.slow
def test_attention_over_pairs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Triangles().eval()
    axes = {"pair": {0: "batch:1:4", 1: "n:1:16", 2: "n"}, "mask": {0: "batch", 1: "n", 2: "n"}}
    bundle = crossfuse.export(ModelSpec(module, pairs(2, 5, 0), axes), tmp_path / "b", ["ort-cpu"])
    rows = list(bundle.ledger)
    assert [row.site for row in rows] == [f"ways.{way.__name__}" for way in WAYS]
    assert all(row.fused["ort-cpu"] and row.kind == "self" for row in rows)
    same_at(bundle, module, [pairs(1, 7, 3), pairs(3, 2, 4), pairs(2, 11, 5)])


class BothWays(nn.Module):
    """Both directions from one product, and a picture put together as DiT and MAE do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.w = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        q, k, v, w = (
            t.unflatten(-1, (HEADS, -1)) for t in (self.q(x), self.k(y), self.v(x), self.w(y))
        )
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2
        there = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), w).flatten(2)
        back = torch.einsum("bhij,bihd->bjhd", scores.softmax(-2), v).flatten(2)
        patches = there.reshape(there.shape[0], -1, 1, 2, 2, HEADS)
        return {"picture": torch.einsum("nhwpqc->nchpwq", patches).flatten(2), "back": back}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_both_directions_at_a_static_batch(batch: int, tmp_path: Path) -> None:
    def inputs(rows: int, keys: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(rows)
        shapes = {"x": (batch, rows, WIDTH), "y": (batch, keys, WIDTH)}
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    torch.manual_seed(0)
    module = BothWays().eval()
    spec = ModelSpec(module, inputs(3, 5), {"x": {1: "rows:1:64"}, "y": {1: "keys:1:64"}})
    bundle = crossfuse.export(spec, tmp_path / "b", ["ort-cpu"])
    assert [bool(row.fused["ort-cpu"]) for row in bundle.ledger] == [True, True]
    assert {row.kind for row in bundle.ledger} == {"cross"}
    same_at(bundle, module, [inputs(7, 2), inputs(1, 9), inputs(6, 6)])
