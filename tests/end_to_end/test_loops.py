"""Modules that are called again and again: weights once, an attention a call, each call told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec, runtime

WIDTH, HEADS = 32, 4
Inputs = dict[str, Tensor]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Attend(nn.Module):
    """Multi-head attention over other tokens, some of them hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, y: Tensor, shown: Tensor | None = None) -> Tensor:
        parts = (self.query(x), *self.key_value(y).chunk(2, -1))
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in parts)
        mask = None if shown is None else shown[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, mask)
        return self.out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, attention over a context, and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = Attend(), Attend()
        self.wide, self.back = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor, context: Tensor, shown: Tensor, shift: float = 0.0) -> Tensor:
        x = x + self.own(F.layer_norm(x, (WIDTH,)) + shift, x)
        x = x + self.cross(F.layer_norm(x, (WIDTH,)), context, shown)
        return x + self.back(F.gelu(self.wide(x)))


class Denoise(nn.Module):
    """A sampler: the same blocks at each step, told the time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.block = steps, Block()
        self.enter, self.leave = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, context: Tensor, shown: Tensor) -> Tensor:
        for step in range(self.steps):
            moved = self.block(self.enter(x), context, shown, 1 - step / self.steps)
            x = x - self.leave(moved) / self.steps
        return x


class Refine(nn.Module):
    """Iterative refinement: reference points are looked up anew at each round, and corrected."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds, self.attend = rounds, Attend()
        self.place, self.correct = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.gate = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor, shown: Tensor) -> dict[str, Tensor]:
        hidden, found = torch.zeros_like(x[..., :1]).expand(-1, -1, WIDTH), []
        for _ in range(self.rounds):
            seen = self.attend(hidden + self.place(x), context, shown)
            hidden = self.gate(seen.flatten(0, 1), hidden.flatten(0, 1)).view(seen.shape)
            x = x + self.correct(hidden).tanh()
            found.append(x)
        return {"points": x, "all": torch.stack(found)}


class Shared(nn.Module):
    """A universal transformer: one layer in the place of all."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.enter, self.layer = nn.Linear(3, WIDTH), Block()
        self.depth, self.norm = depth, nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, context: Tensor, shown: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(self.depth):
            x = self.layer(x, context, shown)
        return self.norm(x)


class Listed(nn.Module):
    """Layers of a list, three of which are one and the same."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        one, other = Attend(), Attend()
        self.enter = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList([one, other, *[one] * (depth - 2)])

    def forward(self, x: Tensor, context: Tensor, shown: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + layer(F.layer_norm(x, (WIDTH,)), context, shown)
        return x


def made(batch: int, tokens: int, keys: int, seed: int) -> Inputs:
    shown = randn(batch, keys, seed=seed + 2) > -0.3
    shown[:, 0] = True
    return {
        "x": randn(batch, tokens, 3, seed=seed),
        "context": randn(batch, keys, WIDTH, seed=seed + 1),
        "shown": shown,
    }


def exported(module: nn.Module, folder: Path) -> crossfuse.Bundle:
    dynamic = {
        "x": {0: "batch", 1: "tokens"},
        "context": {0: "batch", 1: "keys"},
        "shown": {0: "batch", 1: "keys"},
    }
    spec = ModelSpec(module, made(2, 4, 6, seed=0), dynamic)
    return crossfuse.export(spec, folder / "b", quick=True)


def check(module: nn.Module, sites: dict[str, int], folder: Path) -> None:
    bundle = exported(module, folder)
    rows = list(bundle.ledger)
    assert Counter(row.site.partition("#")[0] for row in rows) == sites
    for site, count in sites.items():
        calls = [row.site for row in rows if row.site.partition("#")[0] == site]
        assert calls == [site, *(f"{site}#{i}" for i in range(2, count + 1))]
    assert all(row.fused["ort-cpu"] for row in rows)
    heavy = sum(p.numel() * 4 for p in module.parameters() if p.numel() * 4 >= 1024)
    graph = ir.load(bundle.path / bundle.manifest.fused_graph).graph
    held = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
    assert sum(t.nbytes for t in held if t.nbytes >= 1024) == heavy, "each weight once"
    double = module.double()
    with runtime.load(bundle.path) as session, torch.no_grad():
        for batch, tokens, keys in ((1, 1, 1), (3, 7, 11)):
            inputs = made(batch, tokens, keys, seed=batch * 10)
            wide = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
            truth = double(**wide)
            named = truth if isinstance(truth, dict) else {"output": truth}
            got = session.run({name: t.numpy() for name, t in inputs.items()})
            for name, expected in named.items():
                np.testing.assert_allclose(got[name], expected.numpy(), atol=2e-5, rtol=1e-4)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def test_a_denoising_loop(tmp_path: Path) -> None:
    module = seeded(lambda: Denoise(2))
    check(module, {"block.own": 2, "block.cross": 2}, tmp_path)


@pytest.mark.slow
def test_many_denoising_steps(tmp_path: Path) -> None:
    module = seeded(lambda: Denoise(10))
    check(module, {"block.own": 10, "block.cross": 10}, tmp_path)


@pytest.mark.slow
def test_iterative_refinement(tmp_path: Path) -> None:
    check(seeded(lambda: Refine(5)), {"attend": 5}, tmp_path)


@pytest.mark.slow
def test_one_layer_in_the_place_of_all(tmp_path: Path) -> None:
    module = seeded(lambda: Shared(6))
    check(module, {"layer.own": 6, "layer.cross": 6}, tmp_path)


@pytest.mark.slow
def test_a_layer_listed_several_times(tmp_path: Path) -> None:
    check(seeded(lambda: Listed(5)), {f"layers.{i}": 1 for i in range(5)}, tmp_path)
