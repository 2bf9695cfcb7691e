"""Terms joined in a mask, a bias and rows that count, executed and compared with the terms applied
one after the other in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.matching.axes import Axes, AxisFactor, FactoredValue, Size, axes_of
from crossfuse.export.matching.axis_roles import AxisRoles
from crossfuse.export.matching.layout_builder import LayoutBuilder
from crossfuse.export.matching.masks import PlacedTerm, join_terms, zero_rows
from crossfuse.export.matching.terms import Term
from crossfuse.ops.reference import attention_reference
from onnx_text import parse, run_reference, value_of, with_tape

BATCH, HEADS, ROWS, KEYS, SIZE = 2, 2, 3, 4, 8
MODEL_INPUTS = "(float[2, 3, 16] q, bool[2, 1, 1, 4] pad, bool[3, 4] late, float[2, 3, 4] bias)"


class Attention:
    """Roles of ``[2, 2, 3, 4]`` scores, and terms on them."""

    def __init__(self) -> None:
        self.model = parse(
            f"{MODEL_INPUTS} => (float[2, 3, 16] y) {{ y = Identity(q) }}",
        )
        self.batch, self.heads, self.rows, self.keys, self.size = (
            (AxisFactor(Size(n)),) for n in (BATCH, HEADS, ROWS, KEYS, SIZE)
        )
        self.roles = AxisRoles(self.batch, self.heads, self.heads, self.batch, self.rows, self.keys)
        self.builder = LayoutBuilder()

    def operand(self, name: str) -> FactoredValue:
        axes: dict[str, Axes] = {
            "pad": (self.batch, (), (), self.keys),
            "late": (self.rows, self.keys),
            "bias": (self.heads, self.rows, self.keys),
        }
        return FactoredValue(value_of(self.model, name), axes[name])

    def run(self, value: ir.Value, inputs: dict[str, np.ndarray]) -> np.ndarray:
        model = with_tape(self.model, list(self.builder.build.nodes), value)
        (got,) = run_reference(model, inputs)
        return got


def inputs() -> dict[str, np.ndarray]:
    """The second sample is all padding, so that rows without keys are among them."""
    rng = np.random.default_rng(0)
    return {
        "q": rng.standard_normal((BATCH, ROWS, HEADS * SIZE)).astype(np.float32),
        "pad": np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool).reshape(BATCH, 1, 1, KEYS),
        "late": np.triu(np.ones((ROWS, KEYS), bool), 1),
        "bias": rng.standard_normal((HEADS, ROWS, KEYS)).astype(np.float32),
    }


def applied(scores: np.ndarray, terms: Sequence[Term], given: dict[str, np.ndarray]) -> np.ndarray:
    """The terms in order, as a softmax in float64 sees them."""
    for term in terms:
        array = given[str(term.operand.value.name)]
        if term.fill is None:
            scores = scores + term.factor * array
        else:
            scores = np.where(array == term.hidden, term.score, scores)
    return scores


Terms = Callable[[Attention], list[Term]]
CASES: dict[str, Terms] = {
    "mask": lambda a: [Term(a.operand("late"), fill=-np.inf)],
    "shown": lambda a: [Term(a.operand("late"), fill=-np.inf, hidden=False)],
    "bias": lambda a: [Term(a.operand("bias"), factor=-0.5, may_hide=True)],
    "two masks": lambda a: [
        Term(a.operand("late"), fill=-np.inf),
        Term(a.operand("pad"), fill=-np.inf),
    ],
    "fill": lambda a: [Term(a.operand("pad"), fill=-1e4)],
    "bias then fill": lambda a: [Term(a.operand("bias")), Term(a.operand("pad"), fill=-1e4)],
    "fill then bias": lambda a: [
        Term(a.operand("pad"), fill=-1e4),
        Term(a.operand("bias"), may_hide=True),
    ],
    "mask then fill": lambda a: [
        Term(a.operand("late"), fill=-np.inf),
        Term(a.operand("pad"), fill=-1e4),
    ],
    "fill then mask": lambda a: [
        Term(a.operand("pad"), fill=-1e4),
        Term(a.operand("late"), fill=-np.inf),
    ],
}


@pytest.mark.parametrize("name", list(CASES))
def test_joined_terms_are_the_terms_in_order(name: str) -> None:
    given = inputs()
    rng = np.random.default_rng(1)
    key, value = rng.standard_normal((2, BATCH, KEYS, HEADS * SIZE))
    joined: dict[str, np.ndarray] = {}
    for part in ("mask", "bias", "query"):
        attention = Attention()
        terms = [PlacedTerm(t, attention.builder, attention.roles) for t in CASES[name](attention)]
        query = value_of(attention.model, "q")
        found = join_terms(terms, query, attention.builder)
        counted = found.counted
        made = {"mask": found.mask, "bias": found.bias, "query": query}[part]
        if part == "query" and counted is not None:
            made = zero_rows(query, counted, attention.roles, attention.size, attention.builder)
        if made is not None and made is not query:
            joined[part] = attention.run(made, given)
    got = attention_reference(
        query=joined.get("query", given["q"]),
        key=key,
        value=value,
        mask=joined.get("mask"),
        bias=joined.get("bias"),
        num_heads=HEADS,
        kv_num_heads=HEADS,
        scale=0.5,
        causal="none",
    )

    def headed(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64).reshape(*array.shape[:2], HEADS, SIZE).transpose(0, 2, 1, 3)

    scores = applied(0.5 * headed(given["q"]) @ headed(key).mT, CASES[name](Attention()), given)
    peak = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(peak), peak, 0))
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    truth = (weights @ headed(value)).transpose(0, 2, 1, 3).reshape(BATCH, ROWS, -1)
    # What is added to a fill of −10⁴ in float32 keeps three digits behind the point.
    np.testing.assert_allclose(got, truth, atol=1e-3 if name == "fill then bias" else 1e-6)


def test_rows_count_where_fills_leave_a_key() -> None:
    attention = Attention()
    placed = PlacedTerm(CASES["fill"](attention)[0], attention.builder, attention.roles)
    found = join_terms([placed], value_of(attention.model, "q"), attention.builder)
    assert found.mask is None
    assert found.counted is not None
    got = attention.run(found.counted.value, inputs())
    np.testing.assert_array_equal(got.reshape(BATCH), [1, 0])
    assert [len(axis) for axis in found.counted.axes] == [1, 0, 0, 0]


def test_without_finite_fills_all_rows_count() -> None:
    attention = Attention()
    terms = [
        PlacedTerm(t, attention.builder, attention.roles) for t in CASES["two masks"](attention)
    ]
    found = join_terms(terms, value_of(attention.model, "q"), attention.builder)
    assert (found.bias, found.counted) == (None, None)


def test_a_placed_term_has_four_axes_of_size_or_one() -> None:
    attention = Attention()
    late = PlacedTerm(CASES["mask"](attention)[0], attention.builder, attention.roles)
    assert late.shape == [1, 1, ROWS, KEYS]
    assert axes_of(late.value) is not None
