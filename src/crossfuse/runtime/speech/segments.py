"""`Transcript`, `Segment`, a part of it with its times, and `Word`; and how a window's tokens are
cut into segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FRAMES_PER_TIME", "Cut", "Segment", "Transcript", "Word", "cut"]

FRAMES_PER_TIME = 2
"""Frames of the features from one token of time to the next."""


class Word(NamedTuple):
    """A word that was said, or what stands for one where a language puts no spaces between them.

    Attributes:
        text: with the space in front, and the punctuation beside it.
        start, end: in seconds.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A part of a transcript.

    Attributes:
        text: what is said.
        start, end: in seconds; None of a part that is no segment of its own.
        tokens: with those of time.
        words: with their times, where these were asked for.
    """

    text: str
    start: float | None
    end: float | None
    tokens: tuple[int, ...]
    words: tuple[Word, ...] = ()

    def to_plain(self) -> dict[str, object]:
        """Times, text and words, as plain data."""
        found: dict[str, object] = {"start": self.start, "end": self.end, "text": self.text.strip()}
        return {**found, "words": [word._asdict() for word in self.words]} if self.words else found


@dataclass(frozen=True)
class Transcript:
    """What was said.

    Attributes:
        text: all of it.
        segments: with their times, where times were asked for; else one.
        tokens: of the segments, one after the other.
        language: code of the language, of a model of several.
        duration: of the sound, in seconds.
    """

    text: str
    segments: tuple[Segment, ...]
    tokens: NDArray[np.int64]
    language: str | None
    duration: float

    @property
    def words(self) -> tuple[Word, ...]:
        """Of all segments, where their times were asked for."""
        return tuple(word for segment in self.segments for word in segment.words)


class Cut(NamedTuple):
    """A part of a window's tokens.

    Attributes:
        tokens: of the part.
        start, end: places in the window, counted in tokens of time.
    """

    tokens: NDArray[np.int64]
    start: float
    end: float


def cut(tokens: NDArray[np.int64], first: int | None, frames: int) -> tuple[list[Cut], int]:
    """Segments of a window, and how many frames the next one begins behind it.

    Two times side by side end a segment and begin the next. What is behind the last such pair was
    cut by the window's end, and is heard again in the next one; unless a single time ends it.

    Args:
        tokens: without those in front and the end.
        first: the first token of time, or None where there are no times.
        frames: of the window, as far as the sound goes.
    """
    is_time = np.zeros(len(tokens), bool) if first is None else tokens >= first
    ends = (np.flatnonzero(is_time[:-1] & is_time[1:]) + 1).tolist()
    alone = is_time[-2:].tolist() == [False, True]
    zero = first or 0
    if not ends:
        times = tokens[is_time]
        end = float(frames // FRAMES_PER_TIME)
        if len(times) and times[-1] != zero:
            end = float(times[-1] - zero)
        return [Cut(tokens, 0.0, end)], frames
    if alone:
        ends.append(len(tokens))
    else:
        ends[-1] += 1
    found, begin = [], 0
    for stop in ends:
        part = tokens[begin:stop]
        last = -1 if stop != ends[-1] or alone else -2
        found.append(Cut(part, float(part[0] - zero), float(part[last] - zero)))
        begin = stop
    ahead = int(tokens[begin - 2] - zero) * FRAMES_PER_TIME
    return found, frames if alone or ahead <= 0 else ahead
