"""What an execution graph says of attentions: fused, in parts, or not found; read off nodes that
are made here, and off a model that OpenVINO compiles in parts."""

from __future__ import annotations

import pytest

from crossfuse.core.openvino import openvino
from crossfuse.core.openvino_nodes import (
    ExecutedNode,
    MarkedAttentions,
    executed_nodes,
    mark_attentions,
)

MARKED = MarkedAttentions({"m.0": frozenset({"raw", "first"}), "m.1": frozenset({"second"})})


@pytest.mark.parametrize(
    ("kind", "implementation", "kernel"),
    [
        ("Subgraph", "jit_avx512_bf16", "Subgraph (bf16)"),
        ("ScaledDotProductAttention", "any_f32", "ScaledDotProductAttention (fp32)"),
        ("scaled_dot_product_attention", "sdpa_opt__f16", "scaled_dot_product_attention (fp16)"),
        ("MHA", "jit_avx2_f32", "MHA (fp32)"),
    ],
)
def test_one_node_of_both_products_is_a_kernel(kind: str, implementation: str, kernel: str) -> None:
    node = ExecutedNode("n", kind, implementation, ("Softmax_7", "m.0"))
    found = MARKED.kernels([node], {"site": "first"})
    assert found == ({"site": kernel}, {})
    assert MARKED.sites([node], {"site": "first"}) == {"n": "site"}


def test_products_apart_are_none() -> None:
    nodes = [
        ExecutedNode("a", "MatMul", "brgemm_avx512_f32", ("MatMul_3",)),
        ExecutedNode("b", "Softmax", "jit_f32", ("Softmax_4",)),
        ExecutedNode("c", "MatMul", "brgemm_avx512_f32", ("m.1",)),
    ]
    kernels, reasons = MARKED.kernels(nodes, {"site": "second", "lost": "nowhere"})
    assert kernels == {}
    assert reasons["site"].endswith("in parts on this machine, the last of them by MatMul (fp32)")
    assert reasons["lost"] == "OpenVINO's front end makes no attention of the operator"
    assert MARKED.sites(nodes, {"site": "second"}) == {}


def test_an_elementwise_subgraph_is_no_attention() -> None:
    node = ExecutedNode("n", "Subgraph", "jit_avx512_f32", ("Add_1", "Multiply_2"))
    assert MARKED.kernels([node], {"site": "first"})[0] == {}


@pytest.mark.parametrize(("mode", "fused"), [("ENABLE", True), ("DISABLE", False)])
def test_what_openvino_compiles_in_parts_is_told_so(mode: str, fused: bool) -> None:
    """Its CPU plugin generates the kernel, unless it is told not to."""
    ov = openvino()
    inputs = [ov.opset13.parameter(ov.PartialShape([2, 2, 7, 8]), ov.Type.f32) for _ in range(3)]
    attention = ov.opset13.scaled_dot_product_attention(*inputs)
    attention.output(0).get_tensor().set_names({"out"})
    model = ov.Model([attention], inputs)
    marked = mark_attentions(model)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "SNIPPETS_MODE": mode}
    compiled = ov.Core().compile_model(model, "CPU", config)
    found = marked.kernels(executed_nodes(compiled.get_runtime_model()), {"site": "out"})
    if fused:
        assert found == ({"site": "Subgraph (fp32)"}, {})
    else:
        assert found[0] == {}
        assert "in parts on this machine, the last of them by MatMul (fp32)" in found[1]["site"]
