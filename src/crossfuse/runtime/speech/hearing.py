"""`Hearing`: a sound, window by window, by Whisper's rules.

The model hears one window at a time. Where the sound is longer, tokens of time say how far a window
was understood, the next one begins there, and the text so far stands in front of it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.loop import generate
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.alignment import Alignment
from crossfuse.runtime.speech.fallback import Fallback
from crossfuse.runtime.speech.first_tokens import (
    first_time,
    first_tokens,
    language_of,
    previous_text,
)
from crossfuse.runtime.speech.segments import FRAMES_PER_TIME, Cut, Segment, Transcript, cut
from crossfuse.runtime.speech.spoken_words import words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.core.tensors import TensorSpec

__all__ = ["FEATURES", "Hearing", "How", "writes_down_speech"]

FEATURES = "input_features"
"""The input of features, as the library's models call it."""

_OF_SPEECH = ("no_timestamps_token_id", "lang_to_id", "is_multilingual", "prev_sot_token_id")
"""Settings that tell a model of Whisper's kind."""


def writes_down_speech(about: Mapping[str, Any]) -> bool:
    """Whether a bundle's settings of generation are those of a model of Whisper's kind."""
    return any(name in about for name in _OF_SPEECH)


@dataclass(frozen=True)
class How:
    """How a sound is to be heard.

    Attributes:
        language, task: as of `transcribe`.
        timed: with times of segments.
        before: tokens in front of the first window.
        conditioned: the text so far stands in front of each further one.
        fallback: when a window is heard again.
        alignment: with times of words.
    """

    language: str | None
    task: str | None
    timed: bool
    before: list[int]
    conditioned: bool
    fallback: Fallback
    alignment: Alignment | None = None


@dataclass
class Hearing:
    """One sound, window by window.

    Attributes:
        engine: in whose slots windows are decoded, beside those of other sounds.
    """

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
    engine: GenerationEngine | None = None

    @property
    def sounding(self) -> int:
        """Frames of the features up to the sound's end; what is behind it is silence."""
        return math.ceil(round(self.duration / self._frame, 6))

    @classmethod
    def of(
        cls, session: Session, processor: Processor, sound: Any, settings: dict[str, Any]
    ) -> Hearing:
        """Of a sound, whose features are computed.

        Raises:
            InputError: a bundle of another kind, a sound that can't be read, or wrong settings.
        """
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

    def steps(self, how: How) -> Generator[Segment, None, Transcript]:
        """Segments, or pieces of text, as they come; returns the whole.

        Raises:
            InputError: as `transcribe`.
        """
        about, frames = self.session.generation, self.features.shape[1]
        is_long = frames > self.window
        first = first_time(about)
        if first is None and (how.timed or is_long):
            raise InputError(
                "the bundle's settings don't say which tokens are times, which "
                + ("a sound longer than a window needs" if is_long else "are asked for"),
                where="no_timestamps_token_id",
                got=f"{self.duration:.1f} s",
                do="Give at most a window's length, or export a checkpoint whose "
                "generation_config.json has it",
            )
        timed = how.timed or is_long
        begin: list[int] = []
        seek, said = 0, list(how.before)
        while seek < frames:
            left = min(self.window, frames - seek)
            context = self._context(seek)
            begin = begin or first_tokens(
                self.session, context, language=how.language, task=how.task, timed=timed
            )
            prompt = [*self._before(said), *begin]
            whole: NDArray[np.int64] | None
            if how.fallback.is_asked:
                whole = self._heard_again(how.fallback, context, prompt, len(begin), timed)
            else:
                whole = yield from self._window(context, prompt, timed, first)
            if whole is None:
                seek += left
                continue
            heard = self._without_end(whole)
            cuts, ahead = cut(heard, first, left)
            made = [self._segment(one, seek, first) for one in (cuts if len(heard) else ())]
            if how.alignment is not None:
                frames_left = min(left, self.sounding - seek)
                places = how.alignment.places(self.session, context, prompt, whole, frames_left)
                made = self._with_words(made, places, seek, language_of(about, begin), first)
            self.segments += made
            yield from made if timed else self._rest(made, first)
            said = self._said(how, first)
            seek += ahead
        return self._transcript(language_of(about, begin), how.timed, first)

    def _context(self, seek: int) -> Context:
        """The window from a frame on, silence behind the sound's end."""
        part = self.features[:, seek : seek + self.window]
        whole = np.zeros((1, part.shape[0], self.window), self.spec.dtype)
        whole[0, :, : part.shape[1]] = part
        with nullcontext() if self.engine is None else self.engine.aside():
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
        """The tokens of a window, the end included; given one by one where they are settled as they
        come."""
        settings = {**self.settings, "return_timestamps": timed}
        settings |= self._longest(len(prompt))
        known = GenerationSettings.of(settings, self.session.generation)
        tokens: NDArray[np.int64]
        if self.engine is not None and known.num_beams == known.num_return_sequences == 1:
            tokens = self.engine.submit(context, prompt, **settings).result().new_tokens[0]
        elif timed or known.num_beams > 1:
            found = generate(self.session, context, [prompt], **settings)
            tokens = found.new_tokens[0]
        else:
            tokens = yield from self._pieces(context, prompt, settings, first)
        return tokens

    def _without_end(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        known = GenerationSettings.of(self.settings, self.session.generation)
        ended = len(tokens) and tokens[-1] in known.eos_token_id
        return tokens[:-1] if ended else tokens

    def _heard_again(
        self,
        fallback: Fallback,
        context: Context,
        prompt: list[int],
        begin: int,
        timed: bool,
    ) -> NDArray[np.int64] | None:
        """The tokens of a window, the end included, heard until they are good; None where nothing
        is said. The transcript begins with the last ``begin`` tokens of the prompt."""
        settings = {**self.settings, "return_timestamps": timed} | self._longest(len(prompt))
        found = fallback.hear(self.session, context, prompt, settings, len(prompt) - begin)
        self.is_calm = found.is_calm
        return None if found.is_silent else found.tokens

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

    @property
    def _frame(self) -> float:
        """Seconds of a frame of the features."""
        log_mel = self.processor.log_mel
        return log_mel.hop_length / log_mel.sampling_rate

    def _segment(self, part: Cut, seek: int, first: int | None) -> Segment:
        start, end = ((seek + FRAMES_PER_TIME * at) * self._frame for at in (part.start, part.end))
        return Segment(self._text(part.tokens, first), start, end, tuple(part.tokens.tolist()))

    def _with_words(
        self,
        segments: list[Segment],
        places: NDArray[np.int64],
        seek: int,
        language: str | None,
        first: int | None,
    ) -> list[Segment]:
        """A window's segments with their words; a token ends where the next one begins."""
        ends = (seek + FRAMES_PER_TIME * places) * self._frame
        times = list(zip([seek * self._frame, *ends[:-1].tolist()], ends.tolist(), strict=True))
        found, begin = [], 0
        for one in segments:
            own = slice(begin, begin + len(one.tokens))
            begin = own.stop
            words = words_of(self.processor, one.tokens, times[own], language=language, first=first)
            found.append(replace(one, words=words))
        return found

    def _text(self, tokens: NDArray[np.int64], first: int | None) -> str:
        return self.processor.decode(tokens if first is None else tokens[tokens < first])

    def _said(self, how: How, first: int | None) -> list[int]:
        """The tokens so far that the next window is heard behind."""
        if not (how.conditioned and self.is_calm):
            return list(how.before)
        said = list(how.before)
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
            words = tuple(word for one in segments for word in one.words)
            segments = (Segment(text, 0.0, self.duration, tuple(tokens.tolist()), words),)
        return Transcript(text, segments, tokens, language, self.duration)
