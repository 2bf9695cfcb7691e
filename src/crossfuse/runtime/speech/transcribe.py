"""`transcribe`: speech of any length to text, by Whisper's rules.

The model hears one window at a time. Where the sound is longer, tokens of time say how far a window
was understood, the next one begins there, and the text so far stands in front of it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, overload

from crossfuse.core.foreign import door
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.alignment import Alignment
from crossfuse.runtime.speech.fallback import Fallback
from crossfuse.runtime.speech.hearing import FEATURES, Hearing, How
from crossfuse.runtime.speech.segments import Segment, Transcript

__all__ = ["FEATURES", "Transcript", "transcribe"]


@overload
def transcribe(
    session: Session,
    processor: Processor,
    sound: Any,
    *,
    language: str | None = ...,
    task: str | None = ...,
    timestamps: bool | None = ...,
    word_timestamps: bool = ...,
    prompt: str = ...,
    condition_on_previous: bool = ...,
    engine: GenerationEngine | None = ...,
    stream: Literal[False] = ...,
    **settings: Any,
) -> Transcript: ...


@overload
def transcribe(
    session: Session,
    processor: Processor,
    sound: Any,
    *,
    language: str | None = ...,
    task: str | None = ...,
    timestamps: bool | None = ...,
    word_timestamps: bool = ...,
    prompt: str = ...,
    condition_on_previous: bool = ...,
    engine: GenerationEngine | None = ...,
    stream: Literal[True],
    **settings: Any,
) -> Generator[Segment, None, Transcript]: ...


@door
def transcribe(  # noqa: PLR0913 -- public: what is heard, and how
    session: Session,
    processor: Processor,
    sound: Any,
    *,
    language: str | None = None,
    task: str | None = None,
    timestamps: bool | None = None,
    word_timestamps: bool = False,
    prompt: str = "",
    condition_on_previous: bool = True,
    engine: GenerationEngine | None = None,
    stream: bool = False,
    **settings: Any,
) -> Transcript | Generator[Segment, None, Transcript]:
    """Write down what is said.

    Args:
        session: of a bundle of Whisper's kind.
        processor: of the same bundle.
        sound: a WAV or NPY file, or samples ``[time]`` at the model's rate.
        language: its code, such as ``en``; where omitted, a model of several languages tells it
            from the first window.
        task: ``transcribe``, or ``translate`` to English; where omitted, what the bundle's settings
            say.
        timestamps: with times; where omitted, what the bundle's settings say, and with those of
            words. Sounds longer than a window need the model's times in any case.
        word_timestamps: with the times of each word (`Segment.words`), read off the attention to
            the sound, whose scores the bundle has to keep (``keep_probabilities``).
        prompt: a text that stands before the first window: names, spelling, style.
        condition_on_previous: the text so far stands before each further window.
        engine: of the same session: windows are decoded in its slots, beside those of sounds that
            other threads give it. Beams, and windows that may be heard again, stay by themselves.
        stream: give an iterator of `Segment` that returns the whole in the end. Without times, and
            without beams, those are pieces of text as their tokens come.
        settings: of :class:`GenerationSettings`, in place of the bundle's own. With
            ``temperature=(0, 0.2, 0.4, …)`` a window is heard again at the next one where its
            tokens compress better than ``compression_ratio_threshold`` or are less likely than
            ``logprob_threshold`` on average; one that is nothing but silence by
            ``no_speech_threshold`` is left out. Text then comes window by window.

    Raises:
        InputError: a bundle of another kind, or one that keeps no scores to read times of words
            off; a sound that can't be read, a language or task that the model doesn't know, or
            settings that are wrong.
    """
    fallback = Fallback.taken_from(settings, session.generation)
    hearing = Hearing.of(session, processor, sound, settings)
    if timestamps is None:
        timestamps = word_timestamps or bool(session.generation.get("return_timestamps"))
    hearing.engine = engine
    how = How(
        language=language,
        task=task,
        timed=timestamps,
        before=_tokens_of(processor, prompt),
        conditioned=condition_on_previous,
        fallback=fallback,
        alignment=Alignment.of(session) if word_timestamps else None,
    )
    steps = hearing.steps(how)
    return steps if stream else _whole(steps)


def _whole(steps: Generator[Segment, None, Transcript]) -> Transcript:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: Transcript = stop.value
            return found


def _tokens_of(processor: Processor, prompt: str) -> list[int]:
    text = prompt.strip()
    return processor.words.encode(f" {text}", special=False) if text else []
