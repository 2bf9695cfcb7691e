"""Speech to text: prompts, windows, times, streams. That tokens are those of ``transformers`` is
tested on models in ``tests/end_to_end/test_whisper.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import InputError, runtime
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.transcribe import Transcript, transcribe
from unit.runtime.speech.toy_speech import (
    BEFORE,
    END,
    FIRST,
    FRENCH,
    GENERATION,
    LENGTH,
    NONE,
    SCORES,
    START,
    TEXT_ALONE,
    TRANSCRIBE,
    WORDS,
    sound,
    speech_processor,
    speech_session,
)  # fmt: skip

PROCESSOR = speech_processor()


def prompts_of(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that sequences begin with, as they come."""
    found: list[list[int]] = []
    start = session.start

    def watched(*given: Any, **named: Any) -> Any:
        found.append(np.asarray(named["prompt"])[0].tolist())
        return start(*given, **named)

    monkeypatch.setattr(session, "start", watched)
    return found


def whole(steps: Any) -> tuple[list[runtime.Segment], Transcript]:
    pieces = []
    while True:
        try:
            pieces.append(next(steps))
        except StopIteration as stop:
            return pieces, stop.value


def test_a_short_sound_is_one_generation() -> None:
    session = speech_session()
    found = transcribe(session, PROCESSOR, sound(0.7), language="fr", suppress_tokens=TEXT_ALONE)
    context = session.encode(input_features=PROCESSOR.sounds(sound(0.7)))
    begin = [START, FRENCH, TRANSCRIBE, NONE]
    plain = runtime.generate(
        session, context, [begin], max_length=LENGTH, suppress_tokens=TEXT_ALONE
    )
    tokens = plain.new_tokens[0]
    tokens = tokens[:-1] if tokens[-1] == END else tokens
    assert found.tokens.tolist() == tokens.tolist()
    assert found.text == " ".join(WORDS[t] for t in tokens if t < len(WORDS))
    assert (found.language, found.duration, len(found.segments)) == ("fr", 0.7, 1)


@pytest.mark.parametrize("beams", [1, 2])
def test_pieces_are_the_text(beams: int) -> None:
    session = speech_session()
    pieces, found = whole(
        transcribe(
            session,
            PROCESSOR,
            sound(0.7),
            language="en",
            stream=True,
            num_beams=beams,
            suppress_tokens=TEXT_ALONE,
        )
    )
    assert "".join(piece.text for piece in pieces) == found.text
    assert found.text
    assert (len(pieces) > 1) == (beams == 1)


def test_windows_begin_where_the_last_was_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    session = speech_session()
    prompts = prompts_of(session, monkeypatch)
    given = sound(3.3, 5)
    steps = transcribe(
        session, PROCESSOR, given, language="fr", prompt="the mat", stream=True, max_length=12
    )
    pieces, found = whole(steps)
    assert len(prompts) > 2
    begin = [START, FRENCH, TRANSCRIBE]
    assert prompts[0] == [BEFORE, WORDS.index("the"), WORDS.index("mat"), *begin]
    assert all(prompt[0] == BEFORE and prompt[-3:] == begin for prompt in prompts)
    before = LENGTH // 2 - 1
    assert max(map(len, prompts)) <= before + 4
    said = [WORDS.index("the"), WORDS.index("mat")]
    for segment in pieces[: len(pieces) // 2]:
        twice = len(segment.tokens) > 2 and segment.tokens[-2] >= FIRST
        said += segment.tokens[:-1] if twice else segment.tokens
    assert any(prompt[1:-3] == said[-before:] for prompt in prompts)
    assert np.concatenate([piece.tokens for piece in pieces]).tolist() == found.tokens.tolist()
    ends = [(piece.start, piece.end) for piece in pieces]
    assert ends == sorted(ends)
    assert max(end for _, end in ends) <= 3.3 + 1
    assert len(found.segments) == 1, "times were not asked for"


def test_windows_without_the_text_before(monkeypatch: pytest.MonkeyPatch) -> None:
    session = speech_session()
    prompts = prompts_of(session, monkeypatch)
    found = transcribe(
        session, PROCESSOR, sound(3.3, 5), language="fr", condition_on_previous=False,
        timestamps=True,
    )  # fmt: skip
    assert prompts == [[START, FRENCH, TRANSCRIBE]] * len(prompts)
    assert len(found.segments) >= len(prompts) > 1
    assert found.text == "".join(PROCESSOR.decode(found.tokens[found.tokens < FIRST]))


def test_times_by_the_bundles_settings() -> None:
    session = speech_session({**GENERATION, "return_timestamps": True})
    timed = transcribe(session, PROCESSOR, sound(0.5)).tokens
    assert timed[0] >= FIRST
    plain = transcribe(speech_session(), PROCESSOR, sound(0.5)).tokens.tolist()
    assert transcribe(session, PROCESSOR, sound(0.5), timestamps=False).tokens.tolist() == plain
    assert plain != timed.tolist()


def test_refusals() -> None:
    short = {name: value for name, value in GENERATION.items() if name != "no_timestamps_token_id"}
    with pytest.raises(InputError, match="longer than a window"):
        transcribe(speech_session(short), PROCESSOR, sound(2))
    with pytest.raises(InputError, match="are asked for"):
        transcribe(speech_session(short), PROCESSOR, sound(0.5), timestamps=True)
    from unit.runtime.toy_decoder import toy_session

    with pytest.raises(InputError, match="Whisper's kind"):
        transcribe(toy_session(), PROCESSOR, sound(0.5))
    with pytest.raises(InputError, match="no such setting"):
        transcribe(speech_session(), PROCESSOR, sound(0.5), beams=3)
    with pytest.raises(InputError, match="one channel"):
        transcribe(speech_session(), PROCESSOR, np.zeros((2, 5)))


@pytest.mark.parametrize(("seconds", "timed"), [(0.7, None), (0.7, False), (2.5, None)])
def test_words_have_times(seconds: float, timed: bool | None) -> None:
    """Of the same tokens; each begins where the token before it ends, and windows one behind the
    other."""
    about = GENERATION | {"alignment_outputs": [[SCORES, 0], [SCORES, 1]]}
    session = speech_session(about, scores=True)
    given = {"language": "en", "suppress_tokens": TEXT_ALONE} if timed is False else {}
    found = transcribe(session, PROCESSOR, sound(seconds), word_timestamps=True, timestamps=timed,
                       **given)  # fmt: skip
    plain = transcribe(session, PROCESSOR, sound(seconds), timestamps=timed is None, **given)
    assert found.tokens.tolist() == plain.tokens.tolist()
    assert not plain.words
    for segment in found.segments:
        said = [WORDS[token] for token in segment.tokens if token < len(WORDS)]
        assert [word.text.strip() for word in segment.words] == said
    assert all(0 <= word.start <= word.end <= seconds + 1e-9 for word in found.words)
    assert len(found.words) > 2
    latest = max(word.end for word in found.words)
    assert latest > seconds - 1


def test_words_of_a_window_heard_again() -> None:
    about = GENERATION | {"alignment_outputs": [[SCORES, 0]]}
    session = speech_session(about, scores=True)
    plain = transcribe(session, PROCESSOR, sound(0.7), word_timestamps=True)
    again = transcribe(session, PROCESSOR, sound(0.7), word_timestamps=True, temperature=(0,))
    assert again.words == plain.words
