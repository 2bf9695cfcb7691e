"""Operations of a graph, against PyTorch's counter."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from crossfuse.graph.flops import count_flops, node_flops
from onnx_building import Graph, normal
from small_graphs import SIZES, fused, model_of

B, L, S = SIZES["B"], SIZES["L"], SIZES["S"]


def counted(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def graph(operator: Callable[[Graph], str], shape: list[int | str]) -> ir.Model:
    g = Graph()
    out = operator(g)
    g.op("Relu", out, outputs=["y"])
    g.output("y", shape)
    return model_of(g, shapes={out: shape})


@pytest.mark.parametrize(
    ("operator", "shape", "eager"),
    [
        (
            lambda g: g.op("MatMul", g.input("x", ["B", "L", 8]), g.weight(normal(8, 6))),
            ["B", "L", 6],
            lambda: torch.zeros(B, L, 8) @ torch.zeros(8, 6),
        ),
        (
            lambda g: g.op("Gemm", g.input("x", [8, "L"]), g.weight(normal(8, 6)), transA=1),
            ["L", 6],
            lambda: torch.zeros(8, L).T @ torch.zeros(8, 6),
        ),
        (
            lambda g: g.op("Conv", g.input("x", ["B", 4, 9]), g.weight(normal(6, 2, 3)), group=2),
            ["B", 6, 7],
            lambda: F.conv1d(torch.zeros(B, 4, 9), torch.zeros(6, 2, 3), groups=2),
        ),
        (
            lambda g: g.op("ConvTranspose", g.input("x", ["B", 4, 9]), g.weight(normal(4, 6, 3))),
            ["B", 6, 11],
            lambda: F.conv_transpose1d(torch.zeros(B, 4, 9), torch.zeros(4, 6, 3)),
        ),
        (
            lambda g: fused(
                g,
                g.input("q", ["B", "L", 8]),
                g.input("k", ["B", "S", 8]),
                g.input("v", ["B", "S", 6]),
            ),
            ["B", "L", 6],
            lambda: (
                (torch.zeros(B * 2, L, 4) @ torch.zeros(B * 2, 4, S)) @ torch.zeros(B * 2, S, 3)
            ),
        ),
    ],
    ids=["MatMul", "Gemm", "Conv", "ConvTranspose", "FusedAttention"],
)
def test_as_pytorch_counts(
    operator: Callable[[Graph], str], shape: list[int | str], eager: Callable[[], object]
) -> None:
    model = graph(operator, shape)
    assert count_flops(model, SIZES) == counted(eager)
    (relu,) = [node for node in model.graph if node.op_type == "Relu"]
    assert node_flops(relu, SIZES) == 0


def test_grouped_heads_count_for_all_queries() -> None:
    def operator(g: Graph) -> str:
        shapes = (("q", ["B", "L", 16]), ("k", ["B", "S", 4]), ("v", ["B", "S", 4]))
        return fused(g, *(g.input(n, s) for n, s in shapes), heads=4, kv_num_heads=1)

    expected = counted(
        lambda: (torch.zeros(B * 4, L, 4) @ torch.zeros(B * 4, 4, S)) @ torch.zeros(B * 4, S, 4)
    )
    assert count_flops(graph(operator, ["B", "L", 16]), SIZES) == expected


def test_an_unknown_shape_is_no_number() -> None:
    model = graph(
        lambda g: g.op("MatMul", g.input("x", ["B", "L", 8]), g.weight(normal(8, 6))), ["B", "L", 6]
    )
    assert count_flops(model, {"B": 2}) is None
    next(iter(model.graph)).outputs[0].shape = None
    assert count_flops(model, SIZES) is None
