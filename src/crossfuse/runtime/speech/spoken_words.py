"""Words of tokens with times, as Whisper's transcripts count them: what begins with a space is one,
and so is a mark of punctuation, which goes with the word beside it. Where a language puts no spaces
between words, each character of its own counts."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.speech.segments import Word

__all__ = ["words_of"]

_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Codes of languages that put no spaces between words."""

_IN_FRONT = "\"'“¡¿([{-"
"""Marks that go with the word behind them."""

_BEHIND = "\"'.。,，!！?？:：”)]}、"
"""Marks that go with the word in front of them."""


def words_of(
    processor: Processor,
    tokens: Sequence[int],
    times: Sequence[tuple[float, float]],
    *,
    language: str | None,
    first: int | None,
) -> tuple[Word, ...]:
    """The words of a segment.

    Args:
        processor: of the bundle.
        tokens: of the segment, those of time included.
        times: start and end of each, in seconds.
        language: code of the language, where known.
        first: the first token of time; None where there are none.
    """
    said = [i for i, token in enumerate(tokens) if first is None or token < first]
    parts = list(_characters(processor, [tokens[i] for i in said], [times[i] for i in said]))
    if language not in _UNSPACED:
        parts = _joined(parts)
    return tuple(_with_marks_behind(_with_marks_in_front(parts)))


def _characters(
    processor: Processor, tokens: Sequence[int], times: Sequence[tuple[float, float]]
) -> Iterator[Word]:
    """The least tokens that are whole characters."""
    pieces, begin = processor.pieces(), 0
    text = ""
    for i, token in enumerate(tokens):
        text = pieces.add(token)
        if i == len(tokens) - 1:
            text += pieces.rest()
        if text:
            yield Word(text, times[begin][0], times[i][1])
            begin = i + 1


def _joined(parts: Sequence[Word]) -> list[Word]:
    found: list[Word] = []
    for part in parts:
        is_mark = part.text.strip() in string.punctuation
        if found and not is_mark and not part.text.startswith(" "):
            found[-1] = _together(found[-1], part)
        else:
            found.append(part)
    return found


def _with_marks_in_front(words: Sequence[Word]) -> list[Word]:
    found: list[Word] = []
    for word in reversed(words):
        if found and word.text.startswith(" ") and word.text.strip() in _IN_FRONT:
            found[-1] = _together(word, found[-1])
        else:
            found.append(word)
    return found[::-1]


def _with_marks_behind(words: Sequence[Word]) -> list[Word]:
    found: list[Word] = []
    for word in words:
        if found and not found[-1].text.endswith(" ") and word.text in _BEHIND:
            found[-1] = _together(found[-1], word)
        else:
            found.append(word)
    return found


def _together(one: Word, other: Word) -> Word:
    return Word(one.text + other.text, one.start, other.end)
