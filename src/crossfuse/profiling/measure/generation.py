"""Tokens over a session's steps: the time to the first one, between those that follow, and how many
a second come to so many callers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.profiling.measure.load import together
from crossfuse.runtime.generation import generate
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.settings import CHANGES_NOTHING
from crossfuse.runtime.session import Session

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "GenerationTimes",
    "Question",
    "generating",
    "generation_times",
    "question_of",
]

DEFAULT_NEW_TOKENS = 32
"""That follow a prompt, where nobody says how many."""

_ONE_AFTER_THE_OTHER: Mapping[str, Any] = {
    **dict.fromkeys(CHANGES_NOTHING),
    **dict.fromkeys(("max_length", "min_length", "min_new_tokens", "forced_eos_token_id")),
    "num_beams": 1,
    "num_return_sequences": 1,
    "do_sample": False,
    "eos_token_id": (),
    "stop_sequences": (),
    "return_timestamps": False,
}
"""Greedy, each sequence as long as the others; what a bundle's settings say of single tokens
counts."""


@dataclass(frozen=True)
class Question:
    """What sequences are generated from.

    Attributes:
        context: inputs of one context.
        prompt: ids.
        new_tokens: that follow.
    """

    context: Mapping[str, NDArray[Any]]
    prompt: Sequence[int]
    new_tokens: int


@dataclass(frozen=True)
class GenerationTimes(JsonData):
    """What came of so many callers, each of which asks again when it is answered.

    Attributes:
        callers: at once; the sequences of several share their steps.
        prompt: tokens of the prompt.
        new_tokens: tokens that follow it.
        firsts: nanoseconds from the question to the first token: the context is encoded, the prompt
            computed, and with several callers waited for the others' steps.
        gaps: nanoseconds between one token of a sequence and the next.
        throughput: tokens per second, of all callers together.
        failure: why there are none.
    """

    __json__: ClassVar[Form] = Form(
        keys=(
            *("callers", "prompt", "new_tokens", "throughput", "failure"),
            *("first_p50", "first_p95", "token_p50", "token_p95", "firsts", "gaps"),
        ),
        names={"firsts": "firsts_ns", "gaps": "gaps_ns"},
    )

    callers: int
    prompt: int
    new_tokens: int
    firsts: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    throughput: float | None = None
    failure: str | None = None

    @property
    def first_p50(self) -> float | None:
        """The median time to the first token, in seconds."""
        return _quantile(self.firsts, 0.5)

    @property
    def first_p95(self) -> float | None:
        """In seconds."""
        return _quantile(self.firsts, 0.95)

    @property
    def token_p50(self) -> float | None:
        """The median time of a further token, in seconds."""
        return _quantile(self.gaps, 0.5)

    @property
    def token_p95(self) -> float | None:
        """In seconds."""
        return _quantile(self.gaps, 0.95)


def question_of(
    session: Session, inputs: Mapping[str, NDArray[Any]], new_tokens: int = DEFAULT_NEW_TOKENS
) -> Question:
    """A question of a bundle's own inputs: the first context, and the first row of ids as the
    prompt, at most half of what the state holds.

    Args:
        session: of a bundle that decodes.
        inputs: of the whole model.
        new_tokens: that are to follow; fewer where the state holds fewer.
    """
    assert session.decode is not None
    context = {
        spec.name: inputs[spec.name][:1] if spec.shape[:1] == (CONTEXTS,) else inputs[spec.name]
        for spec in session.stages["context"].inputs
    }
    length = session.decode.length
    prompt = inputs[session.decode.tokens][0, : max(length // 2, 1)].tolist()
    return Question(context, prompt, min(new_tokens, length + 1 - len(prompt)))


def generating(session: Session, question: Question) -> Callable[[], None]:
    """A call that encodes the context and generates the tokens, greedily."""

    def call() -> None:
        for _ in _alone(session, question):
            pass

    return call


def generation_times(
    session: Session,
    question: Question,
    callers: int,
    seconds: float,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> GenerationTimes:
    """Measure for so long; sequences that have begun come to their end. One sequence more comes
    first and is not counted.

    Args:
        session: of a bundle that decodes.
        question: asked by each caller, again and again.
        callers: one, or several, whose sequences share an engine's slots.
        seconds: after which no sequence begins.
        clock: in nanoseconds.
    """
    about = GenerationTimes(callers, len(question.prompt), question.new_tokens)
    try:
        if callers == 1:
            return _measured(about, lambda: _alone(session, question), seconds, clock)
        context = session.encode(question.context)
        with GenerationEngine(session, callers, queue=callers, like=context) as engine:
            return _measured(about, lambda: _beside(engine, question), seconds, clock)
    except CrossfuseError as error:
        return GenerationTimes(
            callers, len(question.prompt), question.new_tokens, failure=str(error)
        )


def _measured(
    about: GenerationTimes,
    tokens: Callable[[], Iterator[object]],
    seconds: float,
    clock: Callable[[], int],
) -> GenerationTimes:
    for _ in tokens():
        pass
    firsts: list[int] = []
    gaps: list[int] = []
    counted, lock = [0], threading.Lock()
    started = clock()
    end = started + int(seconds * 1e9)

    def work(_: int) -> None:
        while True:
            times = [clock(), *(clock() for _ in tokens())]
            if len(times) == 1:
                raise InputError("a sequence has no tokens")
            between = [other - one for one, other in pairwise(times)]
            with lock:
                firsts.append(between[0])
                gaps.extend(between[1:])
                counted[0] += len(between)
            if clock() >= end:
                return

    together(work, about.callers)
    taken = (clock() - started) * 1e-9
    return GenerationTimes(
        about.callers, about.prompt, about.new_tokens, tuple(firsts), tuple(gaps),
        counted[0] / taken,
    )  # fmt: skip


def _alone(session: Session, question: Question) -> Iterator[object]:
    context = session.encode(question.context)
    return generate(
        session, context, [question.prompt], stream=True, max_new_tokens=question.new_tokens,
        **_ONE_AFTER_THE_OTHER,
    )  # fmt: skip


def _beside(engine: GenerationEngine, question: Question) -> Iterator[object]:
    context = engine.session.encode(question.context)
    return iter(
        engine.submit(
            context, [question.prompt], max_new_tokens=question.new_tokens, **_ONE_AFTER_THE_OTHER
        )
    )


def _quantile(taken: Sequence[int], q: float) -> float | None:
    return float(np.quantile(taken, q)) * 1e-9 if taken else None
