"""Products of two activations become MatMul; everything else keeps its operator, with a reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.unify_products import UnifyProductsPass
from onnx_building import Graph, normal
from small_graphs import applied, counts, model_of, untouched


def einsum(equation: str, *shapes: list[int | str]) -> ir.Model:
    g = Graph()
    inputs = [g.input(f"x{i}", shape) for i, shape in enumerate(shapes)]
    g.op("Einsum", *inputs, outputs=["y"], equation=equation)
    g.output("y", [None] * len(equation.partition("->")[2].strip()))
    return model_of(g)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bhld,bhsd->bhls", [["B", 2, "L", 8], ["B", 2, "S", 8]]),
        ("blhd,bshd->bhls", [["B", "L", 2, 8], ["B", "S", 2, 8]]),
        ("bhls,bshd->blhd", [["B", 2, "L", "S"], ["B", "S", 2, 8]]),
        ("ld, sd -> ls", [["L", 8], ["S", 8]]),
        ("blhd,bshd->lbsh", [["B", "L", 2, 8], ["B", "S", 2, 8]]),
        ("bld,bsd->bsl", [["B", "L", 8], ["B", "S", 8]]),
        ("bl,bs->bls", [["B", "L"], ["B", "S"]]),  # nothing is summed
        ("...ld,...sd->...ls", [["B", 2, "L", 4], ["B", 2, "S", 4]]),
        ("...ld,...sd", [["B", "L", 4], ["B", "S", 4]]),  # the result in alphabetic order
        ("b...ld,...sd->b...ls", [["B", 2, "L", 4], [2, "S", 4]]),
        ("...ld,...sd->...ls", [["B", 2, 3, "L", 4], ["B", 1, 3, "S", 4]]),  # broadcast
        ("...ld,sd->l...s", [["B", 2, "L", 4], ["S", 4]]),
        ("bghld,bgsd->bghls", [["B", 2, 3, "L", 4], ["B", 2, "S", 4]]),
        ("bnld,bnsd->bnls", [[1, 2, "L", 4], [1, 2, "S", 4]]),
        ("bld,bsd->bls", [["B", "L", 1], ["B", "S", 4]]),  # summed over what is broadcast
    ],
)
def test_einsums_of_two_activations(equation: str, shapes: list[list[int | str]]) -> None:
    model = einsum(equation, *shapes)
    result = applied(UnifyProductsPass(), model)
    assert result.modified
    assert not result.missed
    found = counts(model)
    assert found["MatMul"] == 1
    assert "Einsum" not in found


@pytest.mark.parametrize(
    ("equation", "shapes", "why"),
    [
        ("bii,bij->bij", [["B", 3, 3], ["B", 3, 4]], "repeats a label"),
        ("bld,bsd,bse->ble", [["B", "L", 4], ["B", "S", 4], ["B", "S", 4]], "two operands"),
        ("bld,bsd->bs", [["B", "L", 4], ["B", "S", 4]], "one operand alone"),
        ("bii->bi", [["B", 3, 3]], "repeats a label"),
        ("bld->bd", [["B", "L", 4]], "one operand alone"),
    ],
)
def test_other_einsums_stay(equation: str, shapes: list[list[int | str]], why: str) -> None:
    model = einsum(equation, *shapes)
    (missed,) = untouched(UnifyProductsPass(), model).missed
    assert why in missed.reason
    assert equation in missed.reason


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("nhwpqc->nchpwq", ["B", 3, 2, 4, 4, 5]),
        ("b...d->...bd", ["B", 2, "L", 4]),
        ("ba", ["B", "L"]),
    ],
)
def test_einsums_of_one_operand_move_its_axes(equation: str, shape: list[int | str]) -> None:
    model = einsum(equation, shape)
    assert applied(UnifyProductsPass(), model).modified
    assert counts(model) == {"Transpose": 1}


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_gemm_of_two_activations(left: int, right: int, alpha: float) -> None:
    g = Graph()
    a = g.input("a", [8, "L"] if left else ["L", 8])
    b = g.input("b", ["S", 8] if right else [8, "S"])
    g.op("Gemm", a, b, outputs=["y"], transA=left, transB=right, alpha=alpha)
    g.output("y", ["L", "S"])
    model = model_of(g)
    assert applied(UnifyProductsPass(), model).modified
    turned = {"Transpose": left + right} if left + right else {}
    assert counts(model) == {"MatMul": 1, **turned, **({"Mul": 1} if alpha != 1 else {})}


def test_products_with_weights_stay() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    g.op("Einsum", x, g.weight(normal(8, 6)), outputs=["y"], equation="bld,de->ble")
    g.output("y", ["B", "L", 6])
    assert untouched(UnifyProductsPass(), model_of(g)).missed == ()


def test_a_third_operand_stays() -> None:
    g = Graph()
    a, b, c = g.input("a", ["L", 8]), g.input("b", [8, "S"]), g.input("c", ["L", "S"])
    g.op("Gemm", a, b, c, outputs=["y"])
    g.output("y", ["L", "S"])
    (missed,) = untouched(UnifyProductsPass(), model_of(g)).missed
    assert missed.reason == "its Gemm adds a third activation"


def test_the_module_of_an_einsum_passes_on() -> None:
    model = einsum("blhd,bshd->bhls", ["B", "L", 2, 8], ["B", "S", 2, 8])
    node = next(iter(model.graph))
    node.metadata_props["crossfuse.module"] = "encoder.attention"
    UnifyProductsPass()(model)
    found = {n.metadata_props["crossfuse.module"] for n in model.graph}
    assert found == {"encoder.attention"}
    assert np.all([n.name for n in model.graph])
