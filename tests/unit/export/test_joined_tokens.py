"""What keys were put together from, in graphs and in modules as people write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import ModelSpec
from crossfuse.export.fuse import fuse
from crossfuse.export.joined_tokens import JoinedTokens
from onnx_building import Graph, normal
from onnx_text import value_of
from small_graphs import model_of

WIDTH, HEADS = 16, 2


def projected(g: Graph, x: str) -> str:
    return g.op("MatMul", x, g.weight(normal(8, 8)))


def a_projection_of_both(g: Graph, x: str, y: str) -> str:
    return projected(g, g.op("Concat", x, y, axis=1))


def both_projected(g: Graph, x: str, y: str) -> str:
    return g.op("Concat", projected(g, x), projected(g, y), axis=1)


def a_part_of_a_wider_projection(g: Graph, x: str, y: str) -> str:
    wide = g.op("MatMul", g.op("Concat", y, x, axis=1), g.weight(normal(8, 16)))
    g.op("Split", wide, outputs=["k", "v"], axis=2, num_outputs=2)
    return "k"


def a_cache(g: Graph, x: str, y: str) -> str:
    return g.op("Concat", y, projected(g, x), axis=1)


def registers(g: Graph, x: str, y: str) -> str:
    table = g.op("Expand", g.weight(normal(1, 3, 8)), g.ints(2, 3, 8))
    return projected(g, g.op("Concat", x, table, axis=1))


def a_batch(g: Graph, x: str, y: str) -> str:
    return projected(g, g.op("Concat", x, y, axis=0))


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        (a_projection_of_both, {"x", "y"}),
        (both_projected, {"v1", "v0"}),
        (a_part_of_a_wider_projection, {"x", "y"}),
        (a_cache, {"v0"}),
        (registers, {"x"}),
        (a_batch, set()),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_parts(form: Callable[[Graph, str, str], str], parts: set[str]) -> None:
    g = Graph()
    x, y = g.input("x", [2, "L", 8]), g.input("y", [2, "S", 8])
    key = form(g, x, y)
    g.output(g.op("Identity", key), [2, "T", 8] if form is not a_batch else [4, "L", 8])
    model = model_of(g, shapes={"v0": [2, "L + 3", 8]} if form is registers else {})
    active = {x, y}
    for node in model.graph:
        if any(v is not None and v.name in active for v in node.inputs):
            active.update(v.name for v in node.outputs)
    found = JoinedTokens(model.graph, lambda value: value.name not in active)
    assert {part.name for part in found.parts(value_of(model, key))} == parts


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (HEADS, -1)).movedim(-2, -3)


class Resampler(nn.Module):
    """Latents that attend to an image and to themselves; layers over any batch axes."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, WIDTH))
        self.to_q = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.to_kv = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(*x.shape[:-2], -1, -1)
        for to_q, to_kv in zip(self.to_q, self.to_kv, strict=True):
            k, v = to_kv(torch.cat((x, latents), -2)).chunk(2, -1)
            weights = (heads(to_q(latents)) @ heads(k).mT / 3).softmax(-1)
            latents = latents + (weights @ heads(v)).movedim(-3, -2).flatten(-2)
        return latents


class Once(nn.Module):
    """One attention, whose queries, keys and values a function gives."""

    def __init__(self, operands: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.operands = operands
        self.q, self.k, self.v, self.other = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.qkv, self.registers = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Parameter(torch.randn(1, 3, WIDTH)),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (heads(t) for t in self.operands(self, x, y))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def projected_apart(m, x, y):
    return m.q(x), torch.cat([m.k(x), m.other(y)], 1), torch.cat([m.v(x), m.other(y)], 1)


def unbound(m, x, y):
    z = m.qkv(torch.cat([y, x], 1)).unflatten(-1, (3, -1)).unbind(2)
    return m.q(x), z[1], z[2]


def with_registers(m, x, y):
    z = torch.cat([x, m.registers.expand(x.shape[0], -1, -1)], 1)
    return m.q(x), m.k(z), m.v(z)


def with_a_cache(m, x, y):
    return m.q(x), torch.cat([y, m.k(x)], 1), torch.cat([y, m.v(x)], 1)


def together(m, x, y):
    return m.qkv(torch.cat([x, y], 1)).chunk(3, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "shape", "kinds"),
    [
        (Resampler(), (2, 6, WIDTH), ["cross"] * 2),
        (Resampler(), (2, 3, 6, WIDTH), ["cross"] * 2),
        (Once(projected_apart), None, ["cross"]),
        (Once(unbound), None, ["cross"]),
        (Once(with_registers), None, ["self"]),
        (Once(with_a_cache), None, ["self"]),
        (Once(together), None, ["self"]),
    ],
    ids=["resampler", "frames", *("apart", "unbound", "registers", "cache", "together")],
)
def test_kinds_of_modules(
    module: nn.Module, shape: tuple[int, ...] | None, kinds: list[str]
) -> None:
    inputs = {"x": torch.randn(shape or (2, 6, WIDTH))}
    dynamic = {"x": {0: "batch:1:8", len(inputs["x"].shape) - 2: "tokens:1:32"}}
    if shape is None:
        inputs["y"] = torch.randn(2, 5, WIDTH)
        dynamic["y"] = {0: "batch", 1: "others:1:32"}
    graph = fuse(ModelSpec(module.eval(), inputs, dynamic))
    assert [row.kind for row in graph.ledger] == kinds
