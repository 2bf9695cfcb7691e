"""Biases of keys are gone: softmax doesn't see them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.drop_key_bias import DropKeyBiasPass
from onnx_building import Graph, normal
from small_graphs import applied, counts, fused, model_of, untouched


def attention(bias: np.ndarray, *, first: bool = False, use: str = "") -> ir.Model:
    g = Graph()
    q, x, v = (g.input(n, ["B", s, 8]) for n, s in (("q", "L"), ("x", 5), ("v", 5)))
    plain = g.op("MatMul", x, g.weight(normal(8, 8)))
    weight = g.weight(bias)
    key = g.op("Add", *((weight, plain) if first else (plain, weight)))
    out = fused(g, q, key, key if use == "value" else v)
    g.op("Identity", out, outputs=["y"])
    g.output("y", ["B", "L", 8])
    if use == "output":
        g.nodes[-3].output[0] = "k"
        g.nodes[-2].input[1] = "k"
        g.output("k", ["B", 5, 8])
    return model_of(g, shapes={out: ["B", "L", 8]})


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8), (1,), ()])
@pytest.mark.parametrize("first", [False, True])
def test_a_bias_of_all_keys_goes(shape: tuple[int, ...], first: bool) -> None:
    model = attention(normal(*shape), first=first)
    assert applied(DropKeyBiasPass(), model).modified
    assert counts(model) == {"MatMul": 1, "FusedAttention": 1, "Identity": 1}
    assert len(model.graph.initializers) == 1  # the bias went with it


@pytest.mark.parametrize("shape", [(5, 8), (1, 5, 8), (5, 1)])
def test_a_bias_that_differs_from_key_to_key_stays(shape: tuple[int, ...]) -> None:
    assert untouched(DropKeyBiasPass(), attention(normal(*shape))).missed == ()


@pytest.mark.parametrize("use", ["value", "output"])
def test_keys_with_another_use_keep_their_bias(use: str) -> None:
    (missed,) = untouched(DropKeyBiasPass(), attention(normal(8), use=use)).missed
    assert missed.reason == "the sum of its keys and their bias has another use"


def test_a_bias_that_widens_the_keys_stays() -> None:
    """Here the sum has another shape than what the constant is added to."""
    g = Graph()
    q, x, v = g.input("q", ["B", "L", 8]), g.input("x", ["B", 5, 1]), g.input("v", ["B", 5, 8])
    out = fused(g, q, g.op("Add", x, g.weight(normal(8))), v)
    g.op("Identity", out, outputs=["y"])
    g.output("y", ["B", "L", 8])
    untouched(DropKeyBiasPass(), model_of(g, shapes={out: ["B", "L", 8]}))


def test_two_attentions_over_the_same_keys() -> None:
    g = Graph()
    q, x, v = (g.input(n, ["B", s, 8]) for n, s in (("q", "L"), ("x", "S"), ("v", "S")))
    key = g.op("Add", x, g.weight(normal(8)))
    outs = [fused(g, q, key, v), fused(g, q, key, v, scale=0.1)]
    g.op("Add", *outs, outputs=["y"])
    g.output("y", ["B", "L", 8])
    model = model_of(g, shapes={o: ["B", "L", 8] for o in outs})
    assert applied(DropKeyBiasPass(), model).modified
    assert counts(model) == {"FusedAttention": 2, "Add": 1}
