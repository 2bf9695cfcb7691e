"""Newer graphs mean the same at an older opset, or are refused with the operator's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.errors import InputError
from crossfuse.export.passes.lower_opset import NEWEST_OPSET, LowerOpsetPass
from crossfuse.export.passes.raise_opset import opset_of
from onnx_building import BOOL, FLOAT, INT64, Graph, attention, normal
from small_graphs import SIZES, computed, counts, model_of, untouched

HEADS, WIDTH = 2, 8
B, L, S = SIZES["B"], SIZES["L"], SIZES["S"]


def graph(
    opset: int, mask: int | None = None, lengths: bool = False, **attributes: int
) -> ir.Model:
    g = Graph()
    q, k, v = (g.input(n, ["B", s, WIDTH]) for n, s in (("q", "L"), ("k", "S"), ("v", "S")))
    given = [q, k, v, "" if mask is None else g.input("mask", ["L", "S"], mask)]
    if lengths:
        given += ["", "", g.input("n", ["B"], INT64)]
    heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    g.op("Attention", *given, outputs=["y"], **heads, **attributes)
    g.output("y", ["B", "L", WIDTH])
    return model_of(g, opset)


ROWS, KEYS = np.arange(L)[:, None], np.arange(S)
LENGTHS = np.array([3, 5])
ALIGNED = ROWS + (LENGTHS - L)[:, None, None]
"""Row numbers where the last query meets the last key of each sequence."""


@pytest.mark.parametrize(
    ("opset", "given", "attended"),
    [
        (24, {"lengths": True}, np.broadcast_to(LENGTHS[:, None, None] > KEYS, (B, L, S))),
        (
            24,
            {"lengths": True, "is_causal": 1},
            (LENGTHS[:, None, None] > KEYS) & (KEYS <= ALIGNED),
        ),
        (25, {"left_window_size": 1}, np.broadcast_to(KEYS >= ROWS - 1, (B, L, S))),
        (
            25,
            {"left_window_size": 1, "right_window_size": 2},
            np.broadcast_to((KEYS >= ROWS - 1) & (KEYS <= ROWS + 2), (B, L, S)),
        ),
        (
            26,
            {"left_window_size": 1, "is_causal": 1},
            np.broadcast_to((KEYS >= ROWS - 1) & (KEYS <= ROWS), (B, L, S)),
        ),
    ],
)
@pytest.mark.parametrize("mask", [None, BOOL, FLOAT], ids=["no mask", "bool", "float"])
def test_lengths_and_windows_become_a_mask(
    opset: int, given: dict[str, Any], attended: np.ndarray, mask: int | None
) -> None:
    model = graph(opset, mask, **given)
    assert LowerOpsetPass(23)(model).modified
    assert opset_of(model) == 23
    assert counts(model)["Attention"] == 1
    feeds = {
        n: normal(B, s, WIDTH, seed=i) for i, (n, s) in enumerate((("q", L), ("k", S), ("v", S)))
    }
    feeds = {name: array.astype(np.float64) for name, array in feeds.items()}
    bias = np.where(attended, 0.0, -np.inf)
    if mask == BOOL:
        feeds["mask"] = normal(L, S, seed=7) > -1
        feeds["mask"][:, 0] = True
        bias = np.where(feeds["mask"], bias, -np.inf)
    elif mask == FLOAT:
        feeds["mask"] = normal(L, S, seed=7).astype(np.float64)
        bias = bias + feeds["mask"]
    if given.get("lengths"):
        feeds["n"] = LENGTHS
    expected = attention(feeds["q"], feeds["k"], feeds["v"], HEADS, bias[:, None])
    seen = np.isfinite(bias).any(-1)
    (got,) = computed(model, feeds)
    np.testing.assert_allclose(got[seen], expected[seen], rtol=1e-9)


@pytest.mark.parametrize("alpha", [None, 1.0, 1.7])
def test_swish_is_written_out(alpha: float | None) -> None:
    g = Graph()
    attributes = {} if alpha is None else {"alpha": alpha}
    g.op("Swish", g.input("x", ["N"]), outputs=["y"], **attributes)
    g.output("y", ["N"])
    model = model_of(g, 24)
    assert LowerOpsetPass(23)(model).modified
    x = np.linspace(-4, 4, SIZES["N"])
    (got,) = computed(model, {"x": x})
    np.testing.assert_allclose(got, x / (1 + np.exp(-(alpha or 1.0) * x)), rtol=1e-6)
    assert "Swish" not in counts(model)
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_an_attention_without_news_stays_itself() -> None:
    model = graph(24, is_causal=1)
    assert LowerOpsetPass(23)(model).modified
    assert counts(model) == {"Attention": 1}


@pytest.mark.parametrize("opset", [20, 23])
def test_older_graphs_stay(opset: int) -> None:
    g = Graph()
    g.op("Relu", g.input("x", ["N"]), outputs=["y"])
    g.output("y", ["N"])
    untouched(LowerOpsetPass(23), model_of(g, opset))


def test_an_operator_that_the_older_opset_lacks() -> None:
    g = Graph()
    g.op("BitCast", g.input("x", ["N"]), outputs=["y"], to=INT64)
    g.output("y", ["N"], INT64)
    with pytest.raises(InputError, match=r"operators of opset 26.*got BitCast.*opset 23"):
        LowerOpsetPass(23)(model_of(g, NEWEST_OPSET))


def test_a_cache_with_windows_is_refused() -> None:
    g = Graph()
    given = [g.input(n, ["B", 2, "S", 4]) for n in ("q", "k", "v", "past_k", "past_v")]
    g.op("Attention", *given[:3], "", *given[3:], outputs=["y", "a", "b"], left_window_size=2)
    g.output("y", ["B", 2, "S", 4])
    with pytest.raises(InputError, match="a cache and windows"):
        LowerOpsetPass(23)(model_of(g, 25))
