"""Gates behind a softmax find their place by what they differ along."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crossfuse.export.matching.axes import Axes, AxisFactor, FactoredValue, Size
from crossfuse.export.matching.gates import (
    Gate,
    GateKind,
    pass_gate,
    place_gates,
    without_known_masks,
)
from crossfuse.export.matching.softmax_chain import ChainNode, Mismatch
from crossfuse.export.matching.terms import Term
from onnx_text import node_of, parse, value_of

BATCH, HEADS, ROWS, KEYS = ((AxisFactor(Size(n)),) for n in (2, 4, 3, 5))
SCORES: Axes = (BATCH, HEADS, ROWS, KEYS)
INPUTS = (
    "(float[2, 4, 3, 5] p, bool[2, 1, 1, 5] pad, bool[3, 5] late, float[4, 1, 1] g, "
    "float[3, 5] number, float[3, 5] given)"
)
BODY = """
    n = Not(pad) filled = Where(n, zero, p) kept = Where(pad, p, zero) f = Cast<to=1>(pad)
    times = Mul(f, p) wrong = Where(pad, p, one) over = Div(p, g) nan = IsNaN(p)
    guard = Where(nan, zero, p) both = Where(late, p, zero) soft = Mul(p, number)
    low = Sub(one, f) bias = Mul(low, lowest) y = Identity(p)
"""
GRAPH = parse(
    f"{INPUTS} => (float[2, 4, 3, 5] y) {{ {BODY} }}",
    zero=np.float32(0),
    one=np.float32(1),
    lowest=np.float32(-1e9),
)


def gate(name: str, operand: int) -> Gate | None:
    node = value_of(GRAPH, name).producer()
    axes, found = pass_gate(ChainNode(node, operand), SCORES)
    assert axes == SCORES
    return found


def known(name: str, operand: int) -> Gate:
    found = gate(name, operand)
    assert found is not None
    return found


def term(name: str, axes: Axes, fill: float | None = None, **options: bool) -> Term:
    return Term(FactoredValue(value_of(GRAPH, name), axes), fill=fill, **options)


PAD: Axes = (BATCH, (), (), KEYS)
LATE: Axes = (ROWS, KEYS)


def test_what_a_node_is() -> None:
    assert known("filled", 2).kind is GateKind.HIDE
    assert known("kept", 1).kind is GateKind.KEEP
    assert known("times", 1).operand.axes == PAD
    assert known("over", 0).kind is GateKind.DIVIDE
    assert gate("guard", 2) is None
    with pytest.raises(Mismatch, match="replaced by 1 where masked"):
        gate("wrong", 1)


@pytest.mark.parametrize(("name", "operand"), [("filled", 2), ("kept", 1), ("times", 1)])
@pytest.mark.parametrize("fill", [-math.inf, -1e9])
def test_a_mask_filled_again_removes_keys(name: str, operand: int, fill: float) -> None:
    placed = place_gates((term("n", PAD, fill),), [known(name, operand)], ROWS, KEYS)
    (mask,) = placed.terms
    assert mask.fill == -math.inf
    assert not placed.on_values
    assert not placed.on_result


def test_a_low_bias_is_a_mask_that_a_gate_covers() -> None:
    placed = place_gates((term("bias", PAD),), [known("times", 1)], ROWS, KEYS)
    (mask,) = placed.terms
    assert mask.fill == -math.inf


@pytest.mark.parametrize(
    "others", [(), (term("late", LATE, -1e9),), (term("given", LATE, may_hide=True),)]
)
def test_a_mask_of_other_keys_goes_to_the_values(others: tuple[Term, ...]) -> None:
    """Without a mask before the softmax the weights don't sum to 1; where another finite one is
    left, rows without keys would mix."""
    terms = (term("n", PAD, -1e9), *others) if others else ()
    placed = place_gates(terms, [known("filled", 2)], ROWS, KEYS)
    assert placed.terms == terms
    assert len(placed.on_values) == 1


def test_a_mask_that_removes_may_be_left() -> None:
    terms = (term("n", PAD, -1e9), term("late", LATE, -math.inf))
    placed = place_gates(terms, [known("filled", 2)], ROWS, KEYS)
    assert [each.fill for each in placed.terms] == [-math.inf] * 2
    assert not placed.on_values


def test_a_gate_that_all_keys_share_goes_to_the_result() -> None:
    placed = place_gates((), [known("over", 0)], ROWS, KEYS)
    assert [each.kind for each in placed.on_result] == [GateKind.DIVIDE]


@pytest.mark.parametrize(
    ("name", "operand", "reason"),
    [("both", 1, "scores are not masked alike"), ("soft", 0, "differs by row and key")],
)
def test_others_are_no_attention(name: str, operand: int, reason: str) -> None:
    with pytest.raises(Mismatch, match=reason):
        place_gates((term("n", PAD, -1e9),), [known(name, operand)], ROWS, KEYS)


def test_the_same_condition_on_other_axes_is_another_mask() -> None:
    """A square mask behind a transpose."""
    square = (AxisFactor(Size(5)),)
    with pytest.raises(Mismatch, match="not masked alike"):
        place_gates(
            (term("late", (KEYS, square), -1e9, hidden=False),),
            [Gate(FactoredValue(value_of(GRAPH, "late"), (square, KEYS)), GateKind.KEEP)],
            square,
            KEYS,
        )


def test_nodes_of_layout_are_passed() -> None:
    graph = parse(
        "(float[2, 4, 3, 5] p) => (float[4, 2, 3, 5] y) { y = Transpose<perm=[1, 0, 2, 3]>(p) }"
    )
    axes, found = pass_gate(ChainNode(node_of(graph, "Transpose"), 0), SCORES)
    assert axes == (HEADS, BATCH, ROWS, KEYS)
    assert found is None


@pytest.mark.parametrize(
    ("fill", "lowest", "kept"),
    [(-math.inf, None, False), (-1e9, 0.5, False), (-1e9, None, True), (-1e9, -1e9, True)],
)
def test_beside_sinks_what_a_fill_hides_has_no_weight(
    fill: float, lowest: float | None, kept: bool
) -> None:
    again, other = known("filled", 2), known("both", 1)
    hiding = term("n", PAD, fill)
    left = [again] if kept else []
    assert without_known_masks([hiding], [again, other], lowest) == [*left, other]


def test_beside_sinks_what_is_added_behind_a_fill_may_lift_it() -> None:
    again = known("filled", 2)
    lifted = [term("n", PAD, -1e9), term("given", LATE, may_hide=True)]
    assert without_known_masks(lifted, [again], 0.0) == [again]
