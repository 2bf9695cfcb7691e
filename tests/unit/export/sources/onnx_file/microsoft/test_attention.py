"""Attentions of ONNX Runtime's own as one node, against the formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from crossfuse.errors import InputError
from crossfuse.export.sources.onnx_file.microsoft.attention import ATTENTIONS, UNTAKEN
from onnx_building import INT32, Graph, attention, normal
from unit.export.sources.onnx_file.microsoft.expanding import expanded

B, L, S, H, W = 2, 3, 5, 2, 8
Q, K, V = normal(B, L, W), normal(B, S, W, seed=1), normal(B, S, W, seed=2)
KEEP = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], np.int32)


def inputs(g: Graph) -> None:
    g.input("q", ["batch", "length", W])
    for name in "kv":
        g.input(name, ["batch", "keys", W])


def hidden(mask: np.ndarray, fill: float) -> np.ndarray:
    return np.where(mask[:, None, None] > 0, 0.0, fill)


def finished(g: Graph, made: str) -> Graph:
    g.op("Identity", made, outputs=["y"])
    g.output("y", ["batch", "length", W])
    return g


def evaluated(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """By ONNX's reference implementation; ONNX Runtime's attention takes fewer masks."""
    return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]


def plain(g: Graph) -> str:
    return g.microsoft("MultiHeadAttention", "q", "k", "v", num_heads=H, scale=0.3)


def masked(g: Graph) -> str:
    mask = g.input("mask", ["batch", "keys"], INT32)
    return g.microsoft(
        "MultiHeadAttention", "q", "k", "v", "", mask, num_heads=H, mask_filter_value=-50.0
    )


def lengths(g: Graph) -> str:
    count = g.input("lengths", ["batch"], INT32)
    return g.microsoft("MultiHeadAttention", "q", "k", "v", "", count, num_heads=H)


CASES: dict[str, tuple[Callable[[Graph], str], dict[str, np.ndarray], np.ndarray]] = {
    "plain": (plain, {}, attention(Q, K, V, H, scale=0.3)),
    "masked": (masked, {"mask": KEEP}, attention(Q, K, V, H, hidden(KEEP, -50.0))),
    "lengths": (
        lengths,
        {"lengths": np.array([2, 5], np.int32)},
        attention(Q, K, V, H, hidden((np.arange(S) < [[2], [5]]).astype(int), -1e4)),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_one_node_computes_the_formula(tmp_path: Path, name: str) -> None:
    make, more, expected = CASES[name]
    g = Graph()
    inputs(g)
    model = expanded(finished(g, make(g)), tmp_path)
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    assert [node.domain for node in nodes] == [""]
    assert nodes[0].attributes["q_num_heads"].as_int() == H
    got = evaluated(model, {"q": Q, "k": K, "v": V, **more})
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_projections_by_one_matrix(tmp_path: Path) -> None:
    weights, bias = normal(W, 3 * W, seed=3), normal(3 * W, seed=4)
    g = Graph()
    g.input("q", ["batch", "length", W])
    made = g.microsoft("Attention", "q", g.weight(weights), g.weight(bias), num_heads=H)
    model = expanded(finished(g, made), tmp_path)
    got = evaluated(model, {"q": Q})
    parts = np.split(Q.astype(np.float64) @ weights + bias, 3, axis=-1)
    np.testing.assert_allclose(got, attention(*parts, H), atol=5e-6)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda g: g.microsoft("MultiHeadAttention", "q", num_heads=H), "it has no keys"),
        (lambda g: g.microsoft("MultiHeadAttention", "q", "k", num_heads=H), "it has no values"),
        (
            lambda g: g.microsoft(
                "MultiHeadAttention", "q", "k", "v", g.weight(normal(W)), num_heads=H
            ),
            "its bias is shorter",
        ),
        (
            lambda g: g.microsoft("DecoderAttention", "q", "k", "v", num_heads=H),
            "it has a cache",
        ),
    ],
)
def test_what_can_not_be_taken_in(tmp_path: Path, make: Callable[[Graph], str], why: str) -> None:
    g = Graph()
    inputs(g)
    with pytest.raises(InputError, match=why):
        expanded(finished(g, make(g)), tmp_path)


def test_nothing_is_both_taken_and_refused() -> None:
    assert not set(ATTENTIONS) & set(UNTAKEN)
