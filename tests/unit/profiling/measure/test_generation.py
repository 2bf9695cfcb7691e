"""Times of tokens: what is counted, for one caller and for several, over a toy decoder."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np
import pytest

from crossfuse.profiling.measure.generation import (
    GenerationTimes,
    Question,
    generation_times,
    question_of,
)
from crossfuse.runtime.session import Session
from crossfuse.runtime.slots import Slots
from unit.runtime.toy_decoder import IMAGES, LENGTH, VOCABULARY, toy_session

IDS = np.array([[1, 2, 3], [4, 5, 6]])


def asked(session: Session, ids: np.ndarray = IDS) -> Question:
    return question_of(session, {"image": IMAGES, "ids": ids})


def test_a_question_is_of_the_first_context() -> None:
    question = asked(toy_session())
    assert question.context["image"].tolist() == IMAGES[:1].tolist()
    assert (question.prompt, question.new_tokens) == ([1, 2, 3], LENGTH + 1 - 3)
    few = question_of(toy_session(), {"image": IMAGES, "ids": IDS}, 2)
    assert few.new_tokens == 2
    long = asked(toy_session(), np.ones((1, LENGTH), np.int64))
    assert (len(long.prompt), long.new_tokens) == (LENGTH // 2, LENGTH // 2 + 1)


def test_one_caller_on_a_clock_that_is_known() -> None:
    """A millisecond between two looks at it: at the question, at each token, and at each end."""
    session = toy_session({"eos_token_id": list(range(VOCABULARY)), "guidance_scale": 3.0})
    ticks = (number * 1_000_000 for number in count())
    question = asked(session)
    found = generation_times(session, question, 1, 0.040, clock=lambda: next(ticks))
    each = question.new_tokens
    assert found.failure is None
    assert (found.callers, found.prompt, found.new_tokens) == (1, 3, each)
    sequences = len(found.firsts)
    assert sequences == 3, "those that began before the end"
    assert set(found.firsts) == set(found.gaps) == {1_000_000}
    assert len(found.gaps) == sequences * (each - 1)
    assert (found.first_p50, found.token_p95) == (1e-3, 1e-3)
    looks = sequences * (each + 2)
    assert found.throughput == pytest.approx(sequences * each / (looks + 1) * 1e3)


def test_several_callers_share_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    session = toy_session()
    together: list[int] = []
    step = Slots.step

    def counted(slots: Slots, tokens: dict[int, int]) -> Any:
        together.append(len(tokens))
        time.sleep(0.003)
        return step(slots, tokens)

    monkeypatch.setattr(Slots, "step", counted)
    found = generation_times(session, asked(session), 3, 0.0)
    assert found.failure is None
    assert len(found.firsts) >= 3
    assert len(found.gaps) == len(found.firsts) * (found.new_tokens - 1)
    assert max(together) == 3


def test_what_can_not_be_measured_says_why() -> None:
    session = toy_session()
    question = Question({"image": IMAGES[:1]}, [VOCABULARY + 3], 4)
    for callers in (1, 2):
        found = generation_times(session, question, callers, 0.0)
        assert isinstance(found, GenerationTimes)
        assert found.failure is not None
        assert str(VOCABULARY + 3) in found.failure
        assert found.first_p50 is None
        assert found.to_json()["throughput"] is None
