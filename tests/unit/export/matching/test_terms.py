"""Terms say what they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.matching.axes import FactoredValue
from crossfuse.export.matching.terms import Multiplier, Term

OPERAND = FactoredValue(ir.Value(name="m"), ())


@pytest.mark.parametrize(
    ("fill", "factor", "finite", "score"),
    [(-1e4, 0.5, True, -5e3), (-np.inf, 0.5, False, -np.inf)],
)
def test_a_fill_is_scaled_with_the_scores(
    fill: float, factor: float, finite: bool, score: float
) -> None:
    term = Term(OPERAND, factor, fill)
    assert (term.finite, term.score) == (finite, score)


def test_a_bias_has_no_score() -> None:
    assert not Term(OPERAND).finite
    with pytest.raises(AssertionError):
        _ = Term(OPERAND).score


def test_terms_do_not_change() -> None:
    for item in (Term(OPERAND), Multiplier(OPERAND, True)):
        with pytest.raises(AttributeError):
            item.operand = OPERAND  # type: ignore[misc]
