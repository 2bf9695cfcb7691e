"""What is done to a score, as factor · score + offset."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crossfuse.export.capture.score_form import NotLinearError, Score, form_of

T = torch.tensor(3.0, dtype=torch.float64)
LINEAR: list[Callable[[Any], Any]] = [
    lambda s: s + T,
    lambda s: T - s * 2,
    lambda s: (s - 1) / T,
    lambda s: torch.add(s, T, alpha=2),
    lambda s: torch.where(T > 2, s, s * 2) + s,
    lambda s: torch.where(T > 4, s, T),
    lambda s: -s.to(torch.float64).mul(T).sub(1),
    lambda s: s * (T > 4),
    lambda s: s.masked_fill(T > 4, -2.0),
]
NONLINEAR: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda s: torch.tanh(s),
    "exp": lambda s: s.exp(),
    "a product with itself": lambda s: s * s,
    "a division by the score": lambda s: T / s,
    "nothing": lambda _: T,
    "gt": lambda s: torch.where(s.gt(0), s, T),
}


@pytest.mark.parametrize("change", LINEAR)
def test_linear_changes_are_read(change: Callable[[Any], Any]) -> None:
    form = form_of(change(Score(T)))
    for number in (-1.5, 0.0, 2.0):
        score = torch.tensor(number, dtype=torch.float64)
        assert math.isclose(float(form.factor * score + form.offset), float(change(score)))


def test_what_is_hidden_keeps_its_factor() -> None:
    for change in (
        lambda s: torch.where(T > 4, s, -math.inf),
        lambda s: s.masked_fill(T > 2, float("-inf")),
        lambda s: torch.where(T > 2, torch.full_like(s, -math.inf), s),
    ):
        form = form_of(change(Score(T)))
        assert (form.factor, float(form.offset)) == (1.0, -math.inf)


@pytest.mark.parametrize("name", NONLINEAR)
def test_others_are_named(name: str) -> None:
    with pytest.raises(NotLinearError, match=name):
        form_of(NONLINEAR[name](Score(T)))
