"""`Answering`: texts generated from the rows of a bulk job, as many beside each other as a worker
has slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from crossfuse.bundle.manifest import Manifest
from crossfuse.core.foreign import own
from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import Advice, CrossfuseError, InputError, Said
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.loop import generate
from crossfuse.runtime.generation.results import Generated
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.processing.asked import asked
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.hearing import writes_down_speech
from crossfuse.runtime.speech.transcribe import transcribe
from crossfuse.serve.bulk.questions import Question
from crossfuse.serve.generating import prompt_of, with_words
from crossfuse.serve.limits import Limits

__all__ = ["Answer", "Answering", "require_generates"]

_OF_SPEECH = (
    "language",
    "task",
    "timestamps",
    "word_timestamps",
    "condition_on_previous",
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
    "temperature",
)
"""Settings that are those of `transcribe`."""

Answer = dict[str, Any] | CrossfuseError


def require_generates(manifest: Manifest, settings: Mapping[str, Any]) -> None:
    """Refuse a bundle that generates nothing, and settings that are wrong, before anything runs.

    Raises:
        InputError: which.
    """
    if manifest.decode is None or "step" not in manifest.stages:
        raise InputError(
            "the bundle has no step stage to generate with",
            do=Advice("Export it with {}", Said("--decode INPUT", "ModelSpec(decode=...)")),
        )
    speech = writes_down_speech(manifest.generation)
    plain = {n: v for n, v in settings.items() if not (speech and n in _OF_SPEECH)}
    chosen = GenerationSettings.of(plain, manifest.generation)
    if "num_return_sequences" in settings and chosen.num_return_sequences > 1:
        raise InputError(
            "each row has one answer", where="num_return_sequences", got=chosen.num_return_sequences
        )


class Answering:
    """Generates from rows over one session. Close it.

    Args:
        session: of a bundle that decodes.
        processor: of the same bundle.
        settings: in place of the bundle's own.
        slots: sequences beside each other.
        limits: of arrays.
    """

    def __init__(
        self,
        session: Session,
        processor: Processor,
        settings: Mapping[str, Any],
        slots: int,
        limits: Limits,
    ) -> None:
        self._session, self._processor = session, processor
        self._words = with_words(processor)
        self._settings = {"num_return_sequences": 1, **settings}
        self._limits, self._slots = limits, slots
        self._hears = writes_down_speech(session.generation)
        self._engine = None if self._hears else self._engine_of(slots)

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[str, Answer]]:
        """Each row's answer, in their order; whatever is wrong with one touches no other."""
        waiting: deque[tuple[str, Callable[[], dict[str, Any]] | CrossfuseError]] = deque()
        for question in questions:
            try:
                waiting.append((question.name, self._begun(question)))
            except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to this row alone
                waiting.append((question.name, own(error)))
            if len(waiting) >= self._slots:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())

    def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.close()

    def _engine_of(self, slots: int) -> GenerationEngine | None:
        """None where beams are asked for, or sequences can't stand side by side."""
        session = self._session
        kept = session.stages["context"].outputs if session.split else ()
        if not any(CONTEXTS in spec.shape for spec in kept):
            return None
        if GenerationSettings.of(self._settings, session.generation).num_beams > 1:
            return None
        try:
            return GenerationEngine(session, slots, queue=slots)
        except InputError:
            return None

    def _begun(self, question: Question) -> Callable[[], dict[str, Any]]:
        """What gives the answer; where there is an engine, it computes meanwhile."""
        if self._hears and question.audio is not None and question.image is None:
            return lambda: self._heard(question)
        context, prompt, said = self._context(question)
        given = None if prompt is None else [prompt]
        if self._engine is None:
            return lambda: self._told(
                generate(self._session, context, given, **self._settings), said
            )
        ticket = self._engine.submit(context, given, **self._settings)
        return lambda: self._told(ticket.result(), said)

    def _context(self, question: Question) -> tuple[Context, list[int] | None, list[int]]:
        """The context, the prompt, and what the answer's text begins with."""
        session = self._session
        if not question.arrays:
            made = asked(
                session, self._processor, text=question.text, image=question.image,
                audio=question.audio,
            )  # fmt: skip
            return session.encode(made.inputs), made.prompt, made.said
        assert session.decode is not None
        given = dict(question.arrays)
        self._limits.check(given)
        ids = given.pop(session.decode.tokens, None)
        prompt = None if ids is None else prompt_of(ids, session.decode.tokens)
        context = session.encode(given)
        if context.count != 1:
            raise InputError("a row is one context", got=f"{context.count} of them")
        return context, prompt, prompt or []

    def _told(self, found: Generated, begin: list[int]) -> dict[str, Any]:
        tokens = found.new_tokens[0].tolist()
        said = {"tokens": tokens, "score": float(found.scores[0]), "ended": bool(found.ended[0])}
        if self._words is None:
            return said
        return {"text": self._words.decode([*begin, *tokens]).strip(), **said}

    def _heard(self, question: Question) -> dict[str, Any]:
        settings = {n: v for n, v in self._settings.items() if n != "num_return_sequences"}
        found = transcribe(
            self._session, self._processor, question.audio, prompt=question.text or "", **settings
        )
        return {
            "text": found.text.strip(),
            "language": found.language,
            "duration": found.duration,
            "segments": [one.to_plain() for one in found.segments],
            "tokens": found.tokens.tolist(),
        }


def _finished(
    name: str, answer: Callable[[], dict[str, Any]] | CrossfuseError
) -> tuple[str, Answer]:
    if isinstance(answer, CrossfuseError):
        return name, answer
    try:
        return name, answer()
    except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to this row alone
        return name, own(error)
