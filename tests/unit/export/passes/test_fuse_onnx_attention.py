"""ONNX's own Attention nodes become the operator, or stay with a reason."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from crossfuse.export.passes.fuse_onnx_attention import FuseOnnxAttentionPass
from crossfuse.graph.attention_node import attentions
from onnx_building import BOOL, FLOAT, Graph
from small_graphs import applied, counts, model_of, untouched

FOUR = (["B", 4, "L", 8], ["B", 2, "S", 8], ["B", 2, "S", 6])
THREE = (["B", "L", 32], ["B", "S", 16], ["B", "S", 12])
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}


def attention(
    shapes: tuple[list[Any], ...],
    mask: tuple[list[Any], int] | None = None,
    outputs: tuple[str, ...] = ("y",),
    **attributes: Any,
) -> ir.Model:
    g = Graph()
    given = [g.input(name, shape) for name, shape in zip("qkv", shapes, strict=True)]
    if mask is not None:
        given.append(g.input("mask", *mask))
    g.op("Attention", *given, outputs=outputs, **attributes)
    g.output("y", ["B", 4, "L", 6] if len(shapes[0]) == 4 else ["B", "L", 24])
    return model_of(g, 23)


@pytest.mark.parametrize("shapes", [FOUR, THREE], ids=["4 axes", "3 axes"])
@pytest.mark.parametrize(
    ("mask", "operand"),
    [
        (None, None),
        ((["B", 1, "L", "S"], BOOL), "mask"),
        ((["L", "S"], BOOL), "mask"),
        ((["B", 4, "L", "S"], FLOAT), "bias"),
        ((["L", "S"], FLOAT), "bias"),
    ],
    ids=["plain", "bool", "bool 2 axes", "float", "float 2 axes"],
)
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}, {"is_causal": 1}], ids=str)
def test_every_form_is_fused(
    shapes: tuple[list[Any], ...],
    mask: tuple[list[Any], int] | None,
    operand: str | None,
    attributes: dict[str, Any],
) -> None:
    given = {**attributes, **(HEADS if shapes is THREE else {})}
    model = attention(shapes, mask, **given)
    result = applied(FuseOnnxAttentionPass(), model)
    assert result.modified
    assert counts(model)["FusedAttention"] == 1
    assert "Attention" not in counts(model)
    (found,) = attentions(model.graph)
    assert (found.num_heads, found.kv_num_heads) == (4, 2)
    assert found.scale == pytest.approx(attributes.get("scale", 8**-0.5))
    assert found.causal == ("upper_left" if attributes.get("is_causal") else "none")
    assert [role for role, _ in found.operands()][3:] == ([operand] if operand else [])


def test_three_axes_need_no_layout() -> None:
    model = attention(THREE, **HEADS)
    FuseOnnxAttentionPass()(model)
    assert counts(model) == {"FusedAttention": 1}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: attention(FOUR, softcap=2.0), "caps the scores"),
        (lambda: attention(FOUR, outputs=("y", "k_all", "v_all", "scores")), "further outputs"),
        (lambda: attention((["B", None, "L", 8], *FOUR[1:])), "heads of its Attention node"),
    ],
)
def test_what_is_not_fused_says_why(model: Any, why: str) -> None:
    graph = model()
    if len(next(iter(graph.graph)).outputs) > 1:
        graph.graph.outputs.append(next(iter(graph.graph)).outputs[3])
    result = untouched(FuseOnnxAttentionPass(), graph)
    (missed,) = result.missed
    assert why in missed.reason


def test_a_cache_is_not_fused() -> None:
    g = Graph()
    given = [g.input(name, shape) for name, shape in zip("qkv", FOUR, strict=True)]
    past = [g.input(n, ["B", 2, "N", w]) for n, w in (("past_k", 8), ("past_v", 6))]
    g.op("Attention", *given, "", *past, outputs=["y", "all_k", "all_v"])
    g.output("y", ["B", 4, "L", 6])
    (missed,) = untouched(FuseOnnxAttentionPass(), model_of(g, 23)).missed
    assert "has a cache" in missed.reason


def test_it_counts_among_the_passes_that_capture() -> None:
    assert FuseOnnxAttentionPass.captures
