"""Rows of values, computed apart from the others: the same numbers, and none of the queries' in the
first."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import NameFixPass

from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.row_parts import Asked, RowParts, element, why_not
from crossfuse.export.split.row_rules import ROW_RULES
from crossfuse.export.split.rows import CannotCutError, Cut, Rows, Side
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.shapes import dims_of
from onnx_text import parse, run_reference, value_of

RNG = np.random.default_rng(0)
FEEDS = {
    "image": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "text": RNG.standard_normal((2, 5, 4)).astype(np.float32),
}
POSITIONS = "s = Shape<start = 1, end = 2>(x) n = Squeeze(s) r = Range(zero, n, one)"
TRIANGLE = f"{POSITIONS} s2 = Concat<axis = 0>(s, s) o = Expand(on, s2) v = Trilu<upper = 0>(o)"
ROW, TABLE = ["B", "N", 4], ["N", 4]

CASES = {
    "joined": ("v = Identity(x)", 1, ROW),
    "row by row": ("a = Add(x, bias) b = MatMul(a, weight) v = Tanh(b)", 1, ROW),
    "heads": (
        "h = Reshape(x, heads) v = Transpose<perm = [0, 2, 1, 3]>(h)",
        2,
        ["B", 2, "N", 2],
    ),
    "repeated heads": (
        "u = Unsqueeze(x, two) t = Expand(u, wide) v = Neg(t)",
        1,
        ["B", "N", 2, 4],
    ),
    "positions": (f"{POSITIONS} e = Gather(table, r) v = Add(x, e)", 1, ROW),
    "positions alone": (f"{POSITIONS} v = Neg(r)", 0, ["N"]),
    "turned": (
        f"{POSITIONS} c = Cast<to = 1>(r) d = Unsqueeze(c, zeros) v = Cos(d)",
        1,
        [1, "N"],
    ),
    "rows of a triangle": (TRIANGLE, 0, ["N", "N"]),
    "columns of a triangle": (TRIANGLE, 1, ["N", "N"]),
    "zeros": (f"{POSITIONS} v = ConstantOfShape(s)", 0, ["N"]),
    "a longer table": (f"{POSITIONS} v = Slice(table, zeros, s, zeros)", 0, TABLE),
    "a table from its second row on": (
        f"{POSITIONS} p = Add(s, ones) v = Slice(table, ones, p, zeros)",
        0,
        TABLE,
    ),
    "running sum": ("v = CumSum(x, one)", 1, ROW),
    "padded in front": ("longer = Pad(x, front) v = Slice(longer, zeros, minus, ones)", 1, ROW),
    "looked up by positions": (f"{POSITIONS} v = Gather<axis = 1>(x, r)", 1, ROW),
    "taken by positions": (
        f"""{POSITIONS} at = Unsqueeze(r, last) moved = Transpose<perm = [1, 0, 2]>(x)
            sums = ReduceSum<keepdims = 0>(moved, both) v = GatherND(sums, at)""",
        0,
        ["N"],
    ),
    "a part of the features": (
        "v, w = Split<axis = 2, num_outputs = 2>(x)",
        1,
        ["B", "N", 2],
    ),
}


def made(text: str, dims: list[int | str], more: str = "") -> ir.Model:
    """``v`` of what an image ``[B, 3, 4]`` and a text ``[B, T, 4]`` are joined to."""
    model = parse(
        f"""(float[B, 3, 4] image, float[B, T, 4] text{more}) => (float y)
            <float[B, N, 4] x, float[B, N, 4] a, float[B, N, 4] b, float[B, N, 2, 2] h,
             float[B, N, 1, 4] u, float[B, N, 2, 4] t, int64[N] r, float[N, 4] e, float[N] c,
             float[1, N] d, bool[N, N] o, float[B, M, 4] longer, int64[N, 1] at,
             float[N, B, 4] moved, float[N] sums>
            {{ x = Concat<axis = 1>(image, text) {text} z = Identity(v)
               y = ReduceSum<keepdims = 0>(x) }}""",
        bias=RNG.standard_normal(4),
        weight=RNG.standard_normal((4, 4)),
        table=RNG.standard_normal((12, 4)),
        heads=[0, -1, 2, 2],
        wide=[1, 1, 2, 4],
        two=[2],
        zero=0,
        one=1,
        ones=[1],
        zeros=[0],
        minus=[-1],
        last=[1],
        both=[1, 2],
        front=[0, 1, 0, 0, 0, 0],
        on=True,
    )
    value_of(model, "v").shape = ir.Shape(dims)
    return model


def parts_of(model: ir.Model) -> tuple[RowParts, Rows]:
    """Of a graph whose ``x`` is in two parts."""
    image, text, *_ = model.graph.inputs
    rows = Rows((image, 1), (text, 1))
    parts = RowParts(model.graph, Dependence(model.graph, ["image"]), ROW_RULES)
    parts.cuts[value_of(model, "x")] = Cut(1, rows, image, text)
    return parts, rows


@pytest.mark.parametrize("name", list(CASES))
def test_rows_have_the_numbers_of_the_whole(name: str) -> None:
    text, axis, dims = CASES[name]
    model = made(text, dims)
    parts, rows = parts_of(model)
    whole = value_of(model, "v")
    first, rest = (parts.part(whole, axis, rows, side) for side in Side)
    assert parts.is_early(first) is ("N" not in (dims_of(first) or ()))
    assert not parts.is_early(whole)
    assert parts.part(whole, axis, rows, Side.FIRST) is first
    results = []
    for value in (whole, first, rest):
        build = GraphBuilder()
        results.append(build.op("Identity", value, like=whole))
        parts.put(build)
    model.graph.outputs[:] = results
    NameFixPass()(model)
    model.graph.sort()
    everything, some, others = run_reference(model, FEEDS)
    np.testing.assert_allclose(some, everything.take(range(3), axis), rtol=1e-6)
    np.testing.assert_allclose(others, everything.take(range(3, 8), axis), rtol=1e-6)


LATE = {
    "of an input": ("v = Identity(late)", "the input late of the queries holds something"),
    "with an input": ("v = Mul(x, factor)", "they are computed with factor of the queries"),
    "of no rows": ("v = Softmax<axis = 1>(x)", r"can't be followed through Softmax \(v\)"),
    "backwards": ("v = CumSum<reverse = 1>(x, one)", "can't be followed through CumSum"),
    "with a size": (
        f"{POSITIONS} f = Cast<to = 1>(n) v = Div(x, f)",
        "they are computed with the size N of the queries",
    ),
}


@pytest.mark.parametrize("name", list(LATE))
def test_first_rows_wait_for_no_query(name: str) -> None:
    text, reason = LATE[name]
    model = made(text, ROW, ", float[B, N, 4] late, float[B, 1, 4] factor")
    parts, rows = parts_of(model)
    with pytest.raises(CannotCutError, match=reason):
        parts.require_early(parts.part(value_of(model, "v"), 1, rows, Side.FIRST))
    assert parts.part(value_of(model, "v"), 1, rows, Side.REST) is not None


def test_two_parts_are_one_again() -> None:
    model = made("v = Identity(x)", ROW)
    parts, _ = parts_of(model)
    joined = parts.whole(value_of(model, "x"))
    assert joined.producer().op_type == "Concat"  # type: ignore[union-attr]
    assert parts.whole(value_of(model, "x")) is joined


def test_an_element_of_a_shape_is_read_alone() -> None:
    model = made("s = Shape<end = 1>(x) k = Concat<axis = 0>(s, ones) v = Identity(k)", [2])
    build = GraphBuilder()
    assert element(build, value_of(model, "k"), 0) is value_of(model, "s")
    assert element(build, value_of(model, "heads"), 2).const_value.numpy().tolist() == [2]  # type: ignore[union-attr]
    assert element(build, value_of(model, "x"), 0).producer().op_type == "Gather"  # type: ignore[union-attr]
    with pytest.raises(CannotCutError, match="a size isn't known"):
        element(build, None, 0)


def test_reasons_name_what_is_in_the_way() -> None:
    model = made("v = Identity(x)", ROW)
    x = value_of(model, "x")
    assert why_not(x, x.producer()) == "they can't be followed through Concat (x)"
    asked = Asked(x.producer(), 1, parts_of(model)[1], Side.REST)  # type: ignore[arg-type]
    assert ROW_RULES["Concat"](parts_of(model)[0], asked) is model.graph.inputs[1]
