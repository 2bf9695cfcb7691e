"""Equations of ``Einsum``, read: labels of each operand's axes and of the result's, one of its own
for each axis of an ellipsis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_letters
from typing import NamedTuple

__all__ = ["Equation", "read_equation"]


class Equation(NamedTuple):
    """What was written, and the labels of each operand's axes and of the result's."""

    text: str
    operands: list[str]
    result: str


def read_equation(text: str, ranks: Sequence[int]) -> Equation | None:
    """Read an equation, with a label in place of each axis of an ellipsis; None where it is not one
    of operands of these ranks."""
    inputs, arrow, result = text.replace(" ", "").partition("->")
    operands = inputs.split(",")
    if len(operands) != len(ranks) or not re.fullmatch(r"[A-Za-z.,]*", inputs + result):
        return None
    free = [label for label in ascii_letters if label not in text]
    hidden = [
        rank - len(labels.replace("...", "")) for labels, rank in zip(operands, ranks, strict=True)
    ]
    spread = [count for labels, count in zip(operands, hidden, strict=True) if "..." in labels]
    longest = max(spread, default=0)
    if min(hidden) < 0 or longest > len(free):
        return None
    # The last axes of all ellipses are the same.
    ellipsis = "".join(free[:longest])
    written = [
        labels.replace("...", ellipsis[longest - count :])
        for labels, count in zip(operands, hidden, strict=True)
    ]
    if not arrow:
        once = sorted(c for c in set(inputs) - set(".,") if inputs.count(c) == 1)
        return Equation(text, written, ellipsis + "".join(once))
    return Equation(text, written, result.replace("...", ellipsis))
