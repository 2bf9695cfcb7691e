"""Einsums of many operands become products of two, equal in float64, and what is none stays."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.export.passes.split_einsums import SplitEinsumsPass
from onnx_building import Graph, normal
from small_graphs import applied, counts, model_of, untouched

X, Y = ["B", "L", 4], ["B", "S", 4]
Q, K, P, V = ["B", 2, "L", 4], ["B", 2, "S", 4], ["B", 2, "L", "S"], ["B", "S", 2, 4]


def einsum(equation: str, *shapes: list[int | str]) -> ir.Model:
    """Operands of static shape are weights."""
    g = Graph()
    operands = [
        g.input(f"x{i}", shape)
        if any(isinstance(size, str) for size in shape)
        else g.weight(normal(*[size for size in shape if isinstance(size, int)]))
        for i, shape in enumerate(shapes)
    ]
    g.op("Einsum", *operands, outputs=["y"], equation=equation)
    g.output("y", [None] * len(equation.partition("->")[2]))
    return model_of(g)


def equations(model: ir.Model) -> list[str]:
    return [n.attributes["equation"].as_string() for n in model.graph if n.op_type == "Einsum"]


@pytest.mark.parametrize(
    ("equation", "shapes", "left"),
    [
        ("bhld,bhsd,h->bhls", [Q, K, [2]], ["bhld,bhsd->bhls"]),  # h goes to the queries
        ("h,bhld,bhsd->bhsl", [[2], Q, K], ["bhld,bhsd->bhsl"]),
        (
            "bld,bse,de->bls",
            [X, ["B", "S", 5], [4, 5]],
            ["bld,de->ble", "ble,bse->bls"],
        ),
        (
            "bld,de,bse->bls",
            [X, [4, 5], ["B", "S", 5]],
            ["bld,de->ble", "ble,bse->bls"],
        ),
        (
            "bhls,bshd,hdo->blo",
            [P, V, [2, 4, 6]],
            ["bhls,bshd->bhld", "bhld,hdo->blo"],
        ),
        ("bld,bsd,bs,d->bls", [X, Y, ["B", "S"], [4]], ["bld,bsd->bls"]),
        (
            "bld,bsdx,x->bls",
            [X, ["B", "S", 4, 3], [3]],
            ["bsdx,x->bsd", "bld,bsd->bls"],
        ),
        ("bldx,bsd,s->bls", [["B", "L", 4, 3], Y, [5]], ["bld,bsd->bls"]),  # x first
        ("...ld,d,...sd->...ls", [Q, [4], K], ["abld,absd->abls"]),
    ],
)
def test_several_operands(equation: str, shapes: list[list[int | str]], left: list[str]) -> None:
    model = einsum(equation, *shapes)
    assert applied(SplitEinsumsPass(), model).modified
    assert equations(model) == left


@pytest.mark.parametrize(
    ("equation", "shapes", "counted"),
    [
        ("bhls,h->bhls", [P, [2]], {"Mul": 1}),
        ("h,bhls->blhs", [[2], P], {"Mul": 1}),
        ("bhls,bhl->bhls", [P, ["B", 2, "L"]], {"Mul": 1}),
        ("bls,bls->bsl", [["B", "L", "S"], ["B", "L", "S"]], {"Mul": 1}),
    ],
)
def test_what_sums_nothing(
    equation: str, shapes: list[list[int | str]], counted: dict[str, int]
) -> None:
    model = einsum(equation, *shapes)
    assert applied(SplitEinsumsPass(), model).modified
    found = counts(model)
    assert {name: found.get(name) for name in counted} == counted
    assert set(found) <= {"Mul", "Transpose", "Unsqueeze", "Identity"}


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bld,bsd->bls", [X, Y]),  # of two: a product
        ("bl,bs->bls", [["B", "L"], ["B", "S"]]),
        ("bld,de->ble", [X, [4, 5]]),
        ("bls,bls->bl", [["B", "L", "S"], ["B", "L", "S"]]),
        ("bll,bls,s->bls", [["B", "L", "L"], ["B", "L", "S"], [5]]),  # a diagonal
        ("bld,de,ef->blf", [X, [4, 5], [5, 6]]),  # of one that is no weight
        ("bhls->bhsl", [P]),
    ],
)
def test_others_stay(equation: str, shapes: list[list[int | str]]) -> None:
    assert untouched(SplitEinsumsPass(), einsum(equation, *shapes)).missed == ()
