"""Self or cross, by where queries and keys come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from crossfuse.export.attention_kind import Dataflow
from crossfuse.graph.attention_node import attentions
from onnx_building import BOOL, INT64, Graph, normal
from small_graphs import fused, model_of

Operands = Callable[[Graph], tuple[str, str]]
"""Queries and keys (also the values), both ``[B, ·, 8]``."""


def tokens(g: Graph, name: str = "x") -> str:
    return g.input(name, ["B", "L", 8])


def projected(g: Graph, x: str) -> str:
    return g.op("Add", g.op("MatMul", x, g.weight(normal(8, 8))), g.weight(normal(8)))


def embedded(g: Graph, name: str) -> str:
    return g.op("Gather", g.weight(normal(16, 8)), g.input(name, ["B", "L"], INT64))


def from_one(g: Graph) -> tuple[str, str]:
    x = tokens(g)
    norm = g.op("LayerNormalization", x, g.weight(np.ones(8), np.float32))
    return projected(g, norm), projected(g, norm)


def from_two(g: Graph) -> tuple[str, str]:
    return projected(g, tokens(g)), projected(g, tokens(g, "y"))


def with_positions(g: Graph) -> tuple[str, str]:
    """The same learned positions on both sides are no common origin."""
    table = g.weight(normal(1, 8))
    return g.op("Add", tokens(g), table), g.op("Add", tokens(g, "y"), table)


def learned_queries(g: Graph) -> tuple[str, str]:
    x = tokens(g)
    size = g.op("Concat", g.op("Shape", x, start=0, end=1), g.ints(3, 8), axis=0)
    return g.op("Expand", g.weight(normal(1, 3, 8)), size), projected(g, x)


def after_self_attention(g: Graph) -> tuple[str, str]:
    """A decoder layer: what an attention mixed in does not count as the queries' own."""
    x, y = tokens(g), tokens(g, "y")
    mixed = g.op("Add", x, fused(g, x, y, y))
    return projected(g, mixed), projected(g, y)


def residual_self_attention(g: Graph) -> tuple[str, str]:
    x = tokens(g)
    mixed = g.op("Add", x, fused(g, x, x, x))
    return projected(g, mixed), projected(g, mixed)


def one_table_for_two_texts(g: Graph) -> tuple[str, str]:
    return embedded(g, "a"), embedded(g, "b")


def one_text(g: Graph) -> tuple[str, str]:
    x = embedded(g, "a")
    return projected(g, x), projected(g, x)


def latents_over_both(g: Graph) -> tuple[str, str]:
    """Keys are projected from latents and image together; the image alone makes it cross."""
    x, y = tokens(g), tokens(g, "y")
    return projected(g, x), projected(g, g.op("Concat", y, x, axis=1))


def lengths_only(g: Graph) -> tuple[str, str]:
    """Reading a size of the keys' source is not content."""
    x, y = tokens(g), tokens(g, "y")
    return g.op("Reshape", projected(g, x), g.op("Shape", y)), projected(g, y)


def rows_that_keys_hide(g: Graph) -> tuple[str, str]:
    """Queries are 0 where a mask made of the keys' tokens hides all keys."""
    x, y = tokens(g), tokens(g, "y")
    seen = g.op("Greater", g.op("ReduceMean", y, g.ints(2), keepdims=1), g.weight(np.float32(0)))
    counted = g.op("ReduceMax", g.op("Cast", seen, to=1), g.ints(1), keepdims=1)
    return g.op("Mul", projected(g, x), counted), projected(g, y)


def one_mask_for_two(g: Graph) -> tuple[str, str]:
    kept = g.op("Cast", g.input("kept", ["B", "L", 1], BOOL), to=1)
    return (
        g.op("Mul", projected(g, tokens(g)), kept),
        g.op("Mul", projected(g, tokens(g, "y")), kept),
    )


def truth_values_as_content(g: Graph) -> tuple[str, str]:
    """What is made of nothing else springs from them."""
    bits = g.op("Cast", g.input("bits", ["B", "L", 8], BOOL), to=1)
    return projected(g, bits), projected(g, bits)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (from_one, "self"),
        (from_two, "cross"),
        (with_positions, "cross"),
        (learned_queries, "cross"),
        (after_self_attention, "cross"),
        (residual_self_attention, "self"),
        (one_table_for_two_texts, "cross"),
        (one_text, "self"),
        (latents_over_both, "cross"),
        (lengths_only, "cross"),
        (rows_that_keys_hide, "cross"),
        (one_mask_for_two, "cross"),
        (truth_values_as_content, "self"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_kinds(form: Operands, kind: str) -> None:
    g = Graph()
    query, key = form(g)
    out = fused(g, query, key, key)
    g.output(out, ["B", "L", 8])
    model = model_of(
        g, shapes={n.output[0]: ["B", "L", 8] for n in g.nodes if n.op_type == "FusedAttention"}
    )
    (*_, last) = attentions(model.graph)
    assert Dataflow(model).kind(last) == kind


def test_inputs_that_reach_a_side() -> None:
    g = Graph()
    x, y, n = tokens(g), tokens(g, "y"), g.input("n", ["B"], INT64)
    mixed = fused(g, x, y, y)
    scaled = g.op("Mul", mixed, g.op("Cast", n, to=1))
    out = fused(g, scaled, y, y)
    g.output(out, ["B", "L", 8])
    model = model_of(g, shapes={mixed: ["B", "L", 8]})
    flow = Dataflow(model)
    *_, last = attentions(model.graph)
    assert flow.reaching(last.query) == ("x", "y", "n")
    assert flow.reaching(last.key, last.value) == ("y",)
    assert flow.reaching(None) == ()
