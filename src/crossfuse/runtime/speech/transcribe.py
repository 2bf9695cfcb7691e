"""`transcribe`: speech of any length to text, by Whisper's rules.

The model hears one window at a time. Where the sound is longer, tokens of time say how far a window
was understood, the next one begins there, and the text so far stands in front of it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from crossfuse.core.foreign import door
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.loop import generate
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.fallback import Fallback
from crossfuse.runtime.speech.first_tokens import (
    first_time,
    first_tokens,
    language_of,
    previous_text,
)
from crossfuse.runtime.speech.segments import FRAMES_PER_TIME, Segment, Transcript, cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.core.tensors import TensorSpec

__all__ = ["FEATURES", "Transcript", "transcribe"]

FEATURES = "input_features"
"""The input of features, as the library's models call it."""


@overload
def transcribe(
    session: Session,
    processor: Processor,
    sound: Any,
    *,
    language: str | None = ...,
    task: str | None = ...,
    timestamps: bool | None = ...,
    prompt: str = ...,
    condition_on_previous: bool = ...,
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
    prompt: str = ...,
    condition_on_previous: bool = ...,
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
    prompt: str = "",
    condition_on_previous: bool = True,
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
        timestamps: with times; where omitted, what the bundle's settings say. Sounds longer than
            a window need the model's times in any case.
        prompt: a text that stands before the first window: names, spelling, style.
        condition_on_previous: the text so far stands before each further window.
        stream: give an iterator of `Segment` that returns the whole in the end. Without times, and
            without beams, those are pieces of text as their tokens come.
        settings: of :class:`GenerationSettings`, in place of the bundle's own. With
            ``temperature=(0, 0.2, 0.4, …)`` a window is heard again at the next one where its
            tokens compress better than ``compression_ratio_threshold`` or are less likely than
            ``logprob_threshold`` on average; one that is nothing but silence by
            ``no_speech_threshold`` is left out. Text then comes window by window.

    Raises:
        InputError: a bundle of another kind, a sound that can't be read, a language or task that
            the model doesn't know, or settings that are wrong.
    """
    fallback = Fallback.taken_from(settings, session.generation)
    hearing = _Hearing.of(session, processor, sound, settings)
    timed = bool(session.generation.get("return_timestamps")) if timestamps is None else timestamps
    steps = hearing.steps(
        _Asked(
            language, task, timed, _tokens_of(processor, prompt), condition_on_previous, fallback
        )
    )
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


@dataclass(frozen=True)
class _Asked:
    """How a sound is to be heard."""

    language: str | None
    task: str | None
    timed: bool
    before: list[int]
    conditioned: bool
    fallback: Fallback


@dataclass
class _Hearing:
    """One sound, window by window."""

    session: Session
    processor: Processor
    features: NDArray[np.float32]
    spec: TensorSpec
    window: int
    duration: float
    settings: dict[str, Any]
    segments: list[Segment] = field(default_factory=list)
    told: str = ""
    is_calm: bool = True

    @classmethod
    def of(
        cls, session: Session, processor: Processor, sound: Any, settings: dict[str, Any]
    ) -> _Hearing:
        spec = next((one for one in session.inputs if one.name == FEATURES), None)
        if spec is None or len(spec.shape) != 3 or session.decode is None:
            raise InputError(
                "the bundle is no model of Whisper's kind",
                got=", ".join(one.name for one in session.inputs),
                expected=f"{FEATURES} [batch, bands, frames], and a step stage",
            )
        log_mel, samples = processor.log_mel, processor.sound(sound)
        features = log_mel(samples, whole=True)
        window = spec.shape[2] if isinstance(spec.shape[2], int) else log_mel.frames
        GenerationSettings.of(settings, session.generation)
        return cls(
            session,
            processor,
            features,
            spec,
            window,
            len(samples) / log_mel.sampling_rate,
            settings,
        )

    def steps(self, asked: _Asked) -> Generator[Segment, None, Transcript]:
        about, frames = self.session.generation, self.features.shape[1]
        is_long = frames > self.window
        first = first_time(about)
        if first is None and (asked.timed or is_long):
            raise InputError(
                "the bundle's settings don't say which tokens are times, which "
                + ("a sound longer than a window needs" if is_long else "are asked for"),
                where="no_timestamps_token_id",
                got=f"{self.duration:.1f} s",
                do="Give at most a window's length, or export a checkpoint whose "
                "generation_config.json has it",
            )
        timed = asked.timed or is_long
        begin: list[int] = []
        seek, said = 0, list(asked.before)
        while seek < frames:
            left = min(self.window, frames - seek)
            context = self._context(seek)
            begin = begin or first_tokens(
                self.session, context, language=asked.language, task=asked.task, timed=timed
            )
            heard: NDArray[np.int64] | None
            if asked.fallback.is_asked:
                heard = self._heard_again(asked.fallback, context, self._before(said), begin, timed)
            else:
                prompt = [*self._before(said), *begin]
                heard = yield from self._window(context, prompt, timed, first)
            if heard is None:
                seek += left
                continue
            cuts, ahead = cut(heard, first, left)
            made = [
                self._segment(one.tokens, (one.start, one.end), seek, first)
                for one in (cuts if len(heard) else ())
            ]
            self.segments += made
            yield from made if timed else self._rest(made, first)
            said = self._said(asked, first)
            seek += ahead
        return self._transcript(language_of(about, begin), asked.timed, first)

    def _context(self, seek: int) -> Context:
        """The window from a frame on, silence behind the sound's end."""
        part = self.features[:, seek : seek + self.window]
        whole = np.zeros((1, part.shape[0], self.window), self.spec.dtype)
        whole[0, :, : part.shape[1]] = part
        return self.session.encode({FEATURES: whole})

    def _before(self, said: list[int]) -> list[int]:
        return previous_text(self.session.generation, said, self._room // 2 - 1)

    @property
    def _room(self) -> int:
        """The most tokens of one window."""
        decode = self.session.decode
        assert decode is not None
        return decode.length

    def _window(
        self, context: Context, prompt: list[int], timed: bool, first: int | None
    ) -> Generator[Segment, None, NDArray[np.int64]]:
        """The tokens of a window; given one by one where they are settled as they come."""
        settings = {**self.settings, "return_timestamps": timed}
        settings |= self._longest(len(prompt))
        known = GenerationSettings.of(settings, self.session.generation)
        tokens: NDArray[np.int64]
        if timed or known.num_beams > 1:
            found = generate(self.session, context, [prompt], **settings)
            tokens = found.new_tokens[0]
        else:
            tokens = yield from self._pieces(context, prompt, settings, first)
        return self._without_end(tokens)

    def _without_end(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        known = GenerationSettings.of(self.settings, self.session.generation)
        ended = len(tokens) and tokens[-1] in known.eos_token_id
        return tokens[:-1] if ended else tokens

    def _heard_again(
        self,
        fallback: Fallback,
        context: Context,
        before: list[int],
        begin: list[int],
        timed: bool,
    ) -> NDArray[np.int64] | None:
        """The tokens of a window, heard until they are good; None where nothing is said."""
        prompt = [*before, *begin]
        settings = {**self.settings, "return_timestamps": timed} | self._longest(len(prompt))
        found = fallback.hear(self.session, context, prompt, settings, len(before))
        self.is_calm = found.is_calm
        return None if found.is_silent else self._without_end(found.tokens)

    def _pieces(
        self, context: Context, prompt: list[int], settings: dict[str, Any], first: int | None
    ) -> Generator[Segment, None, NDArray[np.int64]]:
        """Text up to the first time, which some models say without being asked to: what is behind
        it may be heard again."""
        pieces, is_text = self.processor.pieces(), True
        tokens: list[int] = []
        for step in generate(self.session, context, [prompt], stream=True, **settings):
            tokens.append(int(step.tokens[0]))
            is_text = is_text and (first is None or tokens[-1] < first)
            if is_text and (text := pieces.add(tokens[-1])):
                self.told += text
                yield Segment(text, None, None, (tokens[-1],))
        return np.array(tokens, np.int64)

    def _rest(self, made: list[Segment], first: int | None) -> Iterator[Segment]:
        """The text of a window's segments that was not told as it came."""
        tokens = np.array([token for one in made for token in one.tokens], np.int64)
        text, told = self._text(tokens, first), self.told
        self.told = ""
        if text.startswith(told) and len(text) > len(told):
            yield Segment(text[len(told) :], None, None, ())

    def _longest(self, prompt: int) -> dict[str, int]:
        """The most tokens: what the settings say, the text in front not counted."""
        if self.settings.get("max_new_tokens") is not None:
            return {}
        most = self.settings.get("max_length") or self.session.generation.get("max_length")
        if most is None:
            return {}
        return {"max_length": min(most + min(self._room // 2 - 1, prompt), self._room)}

    def _segment(
        self, tokens: NDArray[np.int64], ends: tuple[float, float], seek: int, first: int | None
    ) -> Segment:
        log_mel = self.processor.log_mel
        frame = log_mel.hop_length / log_mel.sampling_rate
        start, end = ((seek + FRAMES_PER_TIME * place) * frame for place in ends)
        return Segment(self._text(tokens, first), start, end, tuple(tokens.tolist()))

    def _text(self, tokens: NDArray[np.int64], first: int | None) -> str:
        return self.processor.decode(tokens if first is None else tokens[tokens < first])

    def _said(self, asked: _Asked, first: int | None) -> list[int]:
        """The tokens so far that the next window is heard behind."""
        if not (asked.conditioned and self.is_calm):
            return list(asked.before)
        said = list(asked.before)
        for segment in self.segments:
            tokens = segment.tokens
            twice = first is not None and len(tokens) > 2 and tokens[-2] >= first
            said += tokens[:-1] if twice else tokens
        return said

    def _transcript(self, language: str | None, timed: bool, first: int | None) -> Transcript:
        every = [token for one in self.segments for token in one.tokens]
        tokens = np.array(every, np.int64)
        text = self._text(tokens, first)
        segments = tuple(self.segments)
        if not timed:
            segments = (Segment(text, 0.0, self.duration, tuple(tokens.tolist())),)
        return Transcript(text, segments, tokens, language, self.duration)
