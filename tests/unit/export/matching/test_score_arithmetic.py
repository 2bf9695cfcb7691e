"""One operator on scores at a time: what it becomes, or why it is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossfuse.export.matching.axes import AxisFactor, Size, axes_of, size_of
from crossfuse.export.matching.score_arithmetic import Scores, absorb, pass_through
from crossfuse.export.matching.softmax_chain import ChainNode, Mismatch
from onnx_text import node_of, parse, value_of

ROWS, KEYS = AxisFactor(Size.parse("l")), AxisFactor(Size.parse("s"))
SCORES = Scores(((AxisFactor(Size.parse("b")),), (ROWS,), (KEYS,)))
INPUTS = (
    "(float[b, l, s] a, float[l, s] bias, bool[l, s] m, float[l, 1] rows, float[5, b, l, s] big)"
)


def absorbed(operator: str, scores: Scores = SCORES, operand: int = 0, **weights: object) -> Scores:
    """The scores ``a`` behind one operator."""
    model = parse(f"{INPUTS} => (float[b, l, s] y) {{ y = {operator} }}", **weights)
    node = value_of(model, "y").producer()
    assert node is not None
    return absorb(ChainNode(node, operand), scores)


def test_numbers_join_in_the_scale() -> None:
    assert absorbed("Mul(a, c)", c=0.5).scale == 0.5
    assert absorbed("Mul(c, a)", operand=1, c=0.5).scale == 0.5
    assert absorbed("Div(a, c)", c=8.0).scale == 0.125


def test_a_scale_behind_a_bias_scales_it_too() -> None:
    scores = absorbed("Mul(a, c)", absorbed("Add(a, bias)"), c=0.25)
    assert scores.scale == 0.25
    assert [term.factor for term in scores.terms] == [0.25]


def test_the_scores_before_are_left_as_they_were() -> None:
    before = absorbed("Add(a, bias)")
    absorbed("Mul(a, c)", before, c=0.25)
    assert [term.factor for term in before.terms] == [1.0]


def test_what_is_added_is_a_bias_with_the_scores_factors() -> None:
    (bias,) = absorbed("Add(bias, a)", operand=1).terms
    assert bias.operand.axes == ((ROWS,), (KEYS,))
    assert (bias.factor, bias.fill, bias.may_hide) == (1.0, None, True)
    assert absorbed("Sub(a, bias)").terms[0].factor == -1.0
    assert absorbed("Add(a, rows)").terms[0].operand.axes == ((ROWS,), ())


def test_what_is_the_same_for_a_whole_row_changes_no_softmax() -> None:
    shifted = replace(SCORES, shifted=True)
    assert absorbed("Add(a, c)", c=3.0) == shifted
    model = parse(
        f"{INPUTS} => (float[b, l, s] y) {{ x = ReduceMax<keepdims = 1>(a, last) y = Sub(a, x) }}",
        last=[-1],
    )
    assert absorb(ChainNode(node_of(model, "Sub"), 0), SCORES) == shifted
    model = parse(
        f"""{INPUTS} => (float[b, l, s] y) {{ peak = ReduceMax<keepdims = 0>(a, last)
        x = Unsqueeze(peak, last) y = Sub(a, x) }}""",
        last=[-1],
    )
    assert absorb(ChainNode(node_of(model, "Sub"), 0), SCORES) == shifted


def test_a_maximum_over_another_axis_is_a_bias() -> None:
    model = parse(
        f"{INPUTS} => (float[b, l, s] y) {{ x = ReduceMax<keepdims = 1>(a, rows_) y = Sub(a, x) }}",
        rows_=[1],
    )
    assert len(absorb(ChainNode(node_of(model, "Sub"), 0), SCORES).terms) == 1


@pytest.mark.parametrize(
    ("operator", "operand", "hidden"),
    [("Where(m, low, a)", 2, True), ("Where(m, a, low)", 1, False)],
)
def test_a_fill_is_a_mask(operator: str, operand: int, hidden: bool) -> None:
    (mask,) = absorbed(operator, operand=operand, low=-1e9).terms
    assert (mask.fill, mask.hidden, mask.finite, mask.score) == (-1e9, hidden, True, -1e9)
    assert not absorbed(operator, operand=operand, low=-np.inf).terms[0].finite


def test_a_far_limit_acts_on_fills_alone() -> None:
    masked = absorbed("Where(m, low, a)", operand=2, low=-np.inf)
    limited = absorbed("Max(a, c)", masked, c=-5e4)
    assert limited.terms[0].fill == -5e4
    assert absorbed("Min(a, c)", masked, c=5e4) == masked
    assert absorbed("Clip(a, low, high)", masked, low=-5e4, high=5e4).terms[0].fill == -5e4


def test_tensors_multiply() -> None:
    (by,) = absorbed("Mul(a, rows)").multipliers
    assert (by.operand.value.name, by.divides) == ("rows", False)
    assert absorbed("Div(a, rows)").multipliers[0].divides


def of_product(low: str) -> Scores:
    """The scores ``a``, times zeros and ones, and something that hides added."""
    text = f"""{INPUTS} => (float[b, l, s] y) {{
        ones = Cast<to = 1>(m) hidden = Sub(one, ones) x = Mul(a, ones) {low} y = Add(x, low)
    }}"""
    model = parse(text, one=1.0, number=-1e9, half=0.5)
    return absorb(
        ChainNode(node_of(model, "Add"), 0), absorb(ChainNode(node_of(model, "Mul"), 0), SCORES)
    )


def test_a_product_with_zeros_and_ones_is_a_mask() -> None:
    masked = of_product("low = Mul(hidden, number)")
    (mask,) = masked.terms
    assert masked.multipliers == ()
    assert (mask.operand.value.name, mask.fill, mask.hidden) == ("ones", pytest.approx(-1e9), False)


@pytest.mark.parametrize(
    "low", ["low = Mul(ones, number)", "low = Mul(hidden, half)", "low = Mul(bias, number)"]
)
def test_what_is_added_has_to_hide_what_the_product_makes_0(low: str) -> None:
    scores = of_product(low)
    assert len(scores.multipliers) == 1
    assert scores.terms[0].fill is None


@pytest.mark.parametrize(
    ("operator", "operand", "weights", "reason"),
    [
        ("Where(m, low, a)", 2, {"low": -3.0}, "replaced by -3 where masked, which doesn't hide"),
        ("Where(m, bias, a)", 2, {}, "replaced by other values where masked"),
        ("Clip(a, c)", 0, {"c": -1.0}, "its scores are limited by Clip"),
        ("Max(a, bias)", 0, {}, "its scores are limited by Max"),
    ],
)
def test_what_no_attention_has_says_why(
    operator: str, operand: int, weights: dict, reason: str
) -> None:
    with pytest.raises(Mismatch, match=reason):
        absorbed(operator, operand=operand, **weights)


def test_a_multiplier_behind_a_bias_is_refused() -> None:
    with pytest.raises(Mismatch, match="multiplied after a bias or mask"):
        absorbed("Mul(a, rows)", absorbed("Add(a, bias)"))


def test_what_is_larger_than_the_scores_is_refused() -> None:
    model = parse(f"{INPUTS} => (float[5, b, l, s] y) {{ y = Add(a, big) }}")
    with pytest.raises(Mismatch, match="a mask or bias has more axes than the scores"):
        absorb(ChainNode(node_of(model, "Add"), 0), SCORES)
    one_row = Scores((SCORES.axes[0], (), SCORES.axes[2]))
    with pytest.raises(Mismatch, match="a mask or bias is larger than the scores"):
        absorbed("Add(a, bias)", one_row)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[b, l] a) => (int64[b, l] y) { y = Cast<to = 7>(a) }", "cast to integers"),
        (
            "(float[b, 1] a, int64[2] n) => (float[b, l] y) { y = Expand(a, n) }",
            "its scores are expanded",
        ),
    ],
)
def test_what_does_more_than_move_is_refused(text: str, reason: str) -> None:
    model = parse(text)
    axes = axes_of(model.graph.inputs[0])
    assert axes is not None
    with pytest.raises(Mismatch, match=reason):
        pass_through(next(iter(model.graph)), axes)


def test_layout_moves_the_factors() -> None:
    model = parse("(float[b, l, s] a) => (float[s, b, l] y) { y = Transpose<perm = [2, 0, 1]>(a) }")
    moved = pass_through(next(iter(model.graph)), SCORES.axes)
    assert moved == (SCORES.axes[2], SCORES.axes[0], SCORES.axes[1])
    assert [size_of(axis).dim for axis in moved] == ["s", "b", "l"]
