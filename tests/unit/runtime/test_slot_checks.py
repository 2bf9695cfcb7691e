"""Which contexts stand beside each other: by the axes that count them, and all other sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.core.tensors import CONTEXTS, TensorSpec
from crossfuse.runtime.context import Context
from crossfuse.runtime.slot_checks import context_axes, misfit, require_slots
from unit.runtime.toy_decoder import IMAGES, toy_session

AXES = {"key": 0, "by_head": 1, "table": None}


def context(count: int, width: int, table: list[float]) -> Context:
    tensors = {
        "key": np.ones((count, width)),
        "by_head": np.ones((2, count, 3)),
        "table": np.array(table),
    }
    return Context(tensors, (), count, CONTEXTS, "o")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (context(3, 4, [1, 2]), None),
        (context(1, 4, [1, 2]), None),
        (context(1, 5, [1, 2]), "key"),
        (context(1, 4, [1, 3]), "table"),
        (context(1, 4, [1, 2, 3]), "table"),
    ],
)
def test_all_but_their_number_is_equal(given: Context, where: str | None) -> None:
    error = misfit(context(2, 4, [1, 2]), given, AXES)
    assert (None if error is None else error.where) == where


def test_axes_are_those_that_count_contexts() -> None:
    session = toy_session()
    made = session.encode(image=IMAGES)
    assert context_axes(session, made) == {"bias": 0}
    assert require_slots(session, made) is session.engine("step")
    folded = TensorSpec("bias", "float32", (f"4*{CONTEXTS}", 7))
    with pytest.raises(InputError, match="no axis of its own"):
        context_axes(session, replace(made, specs=(folded,)))
