"""What is read off a sum over a multiplication."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossfuse.graph.summed_products import SummedProduct, summed_product
from onnx_building import INT64, Graph
from small_graphs import model_of


def read(g: Graph, *, active: str = "qk") -> tuple[SummedProduct | None, set[ir.Value]]:
    """Of the last operator."""
    g.output("y", [None] * 3)
    model = model_of(g)
    values = {value for value in model.graph.inputs if str(value.name)[0] in active}
    return summed_product(list(model.graph)[-1]), values


def scores(divisor_rank: int = 0) -> Graph:
    g = Graph()
    q, k = g.input("q", ["B", "L", 1, 4]), g.input("k", ["B", 1, "S", 4])
    divisor = g.weight(np.full([1] * divisor_rank, 2, np.float32))
    made = g.op("Div", g.op("Mul", q, k), divisor)
    g.op("ReduceSum", made, g.ints(-1), outputs=["y"], keepdims=0)
    return g


def test_the_factors_the_axes_and_what_divides() -> None:
    product, active = read(scores())
    assert product is not None
    assert [list(factor.dims) for factor in product.factors] == [
        ["B", "L", 1, 4],
        ["B", 1, "S", 4],
    ]
    assert [factor.held for factor in product.factors] == [[0, 1, 3], [0, 2, 3]]
    assert (product.summed, product.kept, len(product.divisors)) == ({3}, False, 1)
    pair = product.multiplied(active)
    assert pair is not None
    assert [value.name for value in pair] == ["q", "k"]


def test_only_activations_are_multiplied() -> None:
    product, active = read(scores(), active="q")
    assert product is not None
    assert product.multiplied(active) is None


def test_what_is_read_as_none() -> None:
    assert read(scores(divisor_rank=1))[0] is None
    g = Graph()
    g.op("ReduceSum", g.input("q", ["B", "L", "S", 4]), g.ints(-1), outputs=["y"], keepdims=0)
    assert read(g)[0] is None
    g = Graph()
    q, k = g.input("q", ["B", "L", 1, 4]), g.input("k", ["B", 1, "S", 4])
    g.op("ReduceMax", g.op("Mul", q, k), g.ints(-1), outputs=["y"], keepdims=0)
    assert read(g)[0] is None
    g = Graph()
    axes = g.input("axes", [1], INT64)
    g.op("ReduceSum", g.op("Mul", g.input("q", [1, 4]), g.input("k", [4])), axes, outputs=["y"])
    assert read(g)[0] is None
