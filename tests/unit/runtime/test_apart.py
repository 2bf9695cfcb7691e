"""Sequences that change those beside them are found, whichever stands first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.apart import require_apart
from crossfuse.runtime.generation.engine import GenerationEngine
from unit.runtime.toy_decoder import IMAGES, toy_session

Mixing = Callable[[np.ndarray, Any], np.ndarray]


def session_with(mixing: Mixing) -> Any:
    session = toy_session()
    step: Any = session.engine("step")
    compute = step.compute

    def mixed(feeds: Any) -> Any:
        logits, state = compute(feeds)
        return [mixing(logits, feeds), state]

    step.compute = mixed
    return session


def from_neighbour(logits: np.ndarray, feeds: Any) -> np.ndarray:
    """The second row hears the first."""
    made = logits.copy()
    made[1:] += 0.5 * logits[:-1]
    return made


@pytest.mark.parametrize(
    "mixing",
    [
        lambda logits, feeds: logits - logits.mean(0),
        lambda logits, feeds: logits / np.abs(logits).max(),
        lambda logits, feeds: logits[::-1],
        lambda logits, feeds: logits + feeds["ids"].sum(),
        from_neighbour,
    ],
    ids=["mean", "scale", "order", "tokens", "from the first"],
)
def test_what_mixes_sequences_is_refused(mixing: Mixing) -> None:
    session = session_with(mixing)
    context = session.encode(image=IMAGES)
    with pytest.raises(InputError, match=r"change those beside them.*\(logits\)"):
        require_apart(session, context)
    with pytest.raises(InputError, match="change those beside them"):
        GenerationEngine(session, 2, like=context)
    with GenerationEngine(session, 2) as engine:
        ticket = engine.submit(context.select([0]), [1])
        with pytest.raises(InputError, match="change those beside them"):
            ticket.result(20)


def test_sequences_that_are_apart_pass() -> None:
    for mixing in (lambda logits, feeds: logits, lambda logits, feeds: np.tanh(logits) * 3):
        session = session_with(mixing)
        require_apart(session, session.encode(image=IMAGES[:1]))
