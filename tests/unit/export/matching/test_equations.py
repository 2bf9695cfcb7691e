"""Equations of einsums, with a label for each axis."""

from __future__ import annotations

import pytest

from crossfuse.export.matching.equations import read_equation


@pytest.mark.parametrize(
    ("text", "ranks", "operands", "result"),
    [
        ("bld, bsd -> bls", (3, 3), ["bld", "bsd"], "bls"),
        ("ba", (2,), ["ba"], "ab"),  # in alphabetic order where no result is written
        ("ij,jk", (2, 2), ["ij", "jk"], "ik"),
        ("bhld,bhsd,h->bhls", (4, 4, 1), ["bhld", "bhsd", "h"], "bhls"),
        ("...d,...d->...", (3, 3), ["abd", "abd"], "ab"),
        ("...d,...d->...", (3, 2), ["abd", "bd"], "ab"),  # the last axes are the same
    ],
)
def test_labels(text: str, ranks: tuple[int, ...], operands: list[str], result: str) -> None:
    equation = read_equation(text, ranks)
    assert equation is not None
    assert (equation.operands, equation.result) == (operands, result)


@pytest.mark.parametrize(
    ("text", "ranks"), [("bld,bsd->bls", (3,)), ("bld,bsd->bls", (3, 2)), ("b+d->b", (2,))]
)
def test_what_is_none_of_these_operands(text: str, ranks: tuple[int, ...]) -> None:
    assert read_equation(text, ranks) is None
