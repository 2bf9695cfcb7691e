"""Sums over multiplications that are products of matrices become Einsum, equal in float64; other
sums stay."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.passes.unify_sums import UnifySumsPass
from onnx_building import INT64, Graph, normal
from small_graphs import applied, counts, model_of, untouched

Shape = list[int | str]


def summed(
    shapes: list[Shape], axes: list[int], keepdims: int = 0, *, divided: bool = False
) -> Graph:
    """The sum over a multiplication of inputs, one after the other."""
    g = Graph()
    product, *others = [g.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    for other in others:
        product = g.op("Mul", product, other)
    if divided:
        product = g.op("Div", product, g.weight(normal(1)[0]))
    g.op("ReduceSum", product, g.ints(*axes), outputs=["y"], keepdims=keepdims)
    return g


def ended(g: Graph, rank: int) -> ir.Model:
    g.output("y", [None] * rank)
    return model_of(g)


def equations(model: ir.Model) -> list[str]:
    return [n.attributes["equation"].as_string() for n in model.graph if n.op_type == "Einsum"]


@pytest.mark.parametrize(
    ("shapes", "axes", "keepdims", "equation"),
    [
        ([["B", 2, "L", 1, 4], ["B", 2, 1, "S", 4]], [-1], 0, "abce,abde->abcd"),
        ([["B", 2, "L", "S", 1], ["B", 2, 1, "S", 4]], [3], 0, "abcd,abde->abce"),
        ([[1, "S", 4], ["B", "L", 1, 4]], [-1], 0, "cd,abd->abc"),  # fewer axes
        ([["B", "L", 1, 4], ["B", 1, "S", 4]], [-1], 1, "abd,acd->abc"),  # an axis is kept
        ([["B", 1, "L", 1, 4], ["B", 1, 1, "S", 4]], [4], 0, "ace,ade->acd"),  # one of size 1
        ([["B", "L", 1, 4], ["B", 1, "S", 4], [4]], [-1], 0, "abd,acd,d->abc"),
        ([["B", "L", 1, 4], [1], ["B", 1, "S", 4]], [-1], 0, "abd,,acd->abc"),
        ([["B", "L", 1, 4], ["B", 1, "S", 4], ["B", 1, "S", 1]], [-1], 0, "abd,acd,ac->abc"),
        ([["B", "L", 1, 2, 4], ["B", 1, "S", 2, 4]], [3, 4], 0, "abde,acde->abc"),
    ],
)
@pytest.mark.parametrize("divided", [False, True])
def test_products(
    shapes: list[Shape], axes: list[int], keepdims: int, equation: str, divided: bool
) -> None:
    rank = max(map(len, shapes)) - (0 if keepdims else len(axes))
    model = ended(summed(shapes, axes, keepdims, divided=divided), rank)
    assert applied(UnifySumsPass(), model).modified
    assert equations(model) == [equation]
    found = counts(model)
    assert found.get("Div", 0) == divided
    assert not {"Mul", "ReduceSum"} & found.keys()


def test_a_factor_is_taken_as_it_was_before_it_was_expanded() -> None:
    g = Graph()
    q, k = g.input("q", ["B", "L", 1, 4]), g.input("k", ["B", 1, "S", 4])
    sizes = g.input("sizes", [4], INT64)
    wide = g.op("Expand", q, sizes, outputs=["wide"])
    g.op("ReduceSum", g.op("Mul", wide, k, outputs=["m"]), g.ints(-1), outputs=["y"], keepdims=0)
    g.output("y", ["B", "L", "S"])
    shapes = {name: ["B", "L", "S", 4] for name in ("wide", "m")}
    model = model_of(g, shapes=shapes)
    result = UnifySumsPass()(model)
    assert result.modified
    assert equations(model) == ["abd,acd->abc"]
    assert "Expand" not in counts(model)


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ([["B", "L", 4], ["B", "L", 4]], [-1]),  # a norm, or a score per place
        ([["B", "L", 1], ["B", "L", 4]], [1]),  # a weighted sum
        ([["B", "L", 1, 4], ["B", 1, "S", 4]], [1]),  # over an axis that one lacks
        ([["B", "L", 1, 4], ["B", 1, "S", 1]], [-1]),
        ([["B", "L", 1, "N"], ["B", 1, "S", "M"]], [-1]),  # one of them may be 1
        ([["B", "L", 1, None], ["B", 1, "S", 4]], [-1]),
    ],
)
def test_other_sums_stay(shapes: list[Shape], axes: list[int]) -> None:
    untouched(UnifySumsPass(), ended(summed(shapes, axes), len(shapes[0]) - 1))


def test_a_multiplication_with_other_uses_stays() -> None:
    g = summed([["B", "L", 1, 4], ["B", 1, "S", 4]], [-1])
    product = g.nodes[0].output[0]
    g.op("Neg", product, outputs=["z"])
    g.output("z", [None] * 4)
    untouched(UnifySumsPass(), ended(g, 3))


def test_products_with_a_weight_stay() -> None:
    g = Graph()
    made = g.op("Mul", g.input("x", ["B", "L", 1, 4]), g.weight(normal(1, 1, 5, 4)))
    g.op("ReduceSum", made, g.ints(-1), outputs=["y"], keepdims=0)
    untouched(UnifySumsPass(), ended(g, 3))
