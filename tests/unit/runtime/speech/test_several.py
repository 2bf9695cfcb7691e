"""Several sounds beside each other: each as alone, in order; what is wrong with one is told at its
turn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse import InputError, runtime
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.several import transcribe_several
from unit.runtime.speech.toy_speech import GENERATION, sound, speech_processor, speech_session

PROCESSOR = speech_processor()
SECONDS = (0.7, 3.3, 0.2, 5.1, 1.0, 2.4, 1.3)
"""One to six windows of a second; they advance by what was understood."""
SOUNDS = [sound(seconds, seed) for seed, seconds in enumerate(SECONDS)]


def rows_of(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each run of the step stage computes."""
    found: list[int] = []
    step: Any = session.engine("step")
    compute = step.compute

    def watched(feeds: Any) -> Any:
        found.append(len(feeds["decoder_input_ids"]))
        time.sleep(0.001)
        return compute(feeds)

    monkeypatch.setattr(step, "compute", watched)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timestamps": True, "language": "en"},
        {"condition_on_previous": False, "prompt": "the mat"},
        {"do_sample": True, "seed": 3, "timestamps": True},
        {"num_beams": 2},
        {"temperature": (0.0, 0.4), "seed": 1},
    ],
)
@pytest.mark.parametrize("at_once", [3, 16])
def test_each_is_as_alone(options: dict[str, Any], at_once: int) -> None:
    session = speech_session()
    found = transcribe_several(session, PROCESSOR, SOUNDS, at_once=at_once, **options)
    for given, one in zip(SOUNDS, found, strict=True):
        alone = runtime.transcribe(speech_session(), PROCESSOR, given, **options)
        assert (one.text, one.language, one.duration) == (
            alone.text,
            alone.language,
            alone.duration,
        )
        np.testing.assert_array_equal(one.tokens, alone.tokens)
        assert one.segments == alone.segments
    assert len({len(one.tokens) for one in transcribe_several(session, PROCESSOR, SOUNDS)}) > 3


def test_steps_are_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    session = speech_session()
    rows = rows_of(session, monkeypatch)
    assert len(list(transcribe_several(session, PROCESSOR, SOUNDS, at_once=4))) == len(SOUNDS)
    together = len(rows)
    rows.clear()
    for given in SOUNDS:
        runtime.transcribe(session, PROCESSOR, given)
    assert together < 0.7 * len(rows)
    rows.clear()
    list(transcribe_several(session, PROCESSOR, SOUNDS, at_once=1))
    assert set(rows) == {1}


def test_a_wrong_sound_is_told_at_its_turn(tmp_path: Path) -> None:
    session = speech_session()
    sounds = [SOUNDS[0], tmp_path / "none.wav", *SOUNDS[1:]]
    found = transcribe_several(session, PROCESSOR, sounds, at_once=2)
    assert next(found).duration == SECONDS[0]
    with pytest.raises(InputError, match="none.wav"):
        next(found)
    assert list(found) == []


def test_who_wants_no_more_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    session = speech_session()
    rows = rows_of(session, monkeypatch)
    found = transcribe_several(session, PROCESSOR, SOUNDS * 20, at_once=2)
    next(found)
    found.close()  # type: ignore[attr-defined]
    done = len(rows)
    time.sleep(0.05)
    assert len(rows) == done


def test_refusals_and_an_engine_of_ones_own() -> None:
    session = speech_session()
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="has to be positive"):
            transcribe_several(session, PROCESSOR, SOUNDS, at_once=wrong)  # type: ignore[arg-type]
    for name in ("stream", "engine"):
        with pytest.raises(InputError, match=name):
            transcribe_several(session, PROCESSOR, SOUNDS, **{name: None})
    with pytest.raises(InputError, match="no such setting"):
        list(transcribe_several(session, PROCESSOR, SOUNDS, temprature=1.0))
    with GenerationEngine(session, 2) as engine:
        one = runtime.transcribe(session, PROCESSOR, SOUNDS[1], engine=engine, timestamps=True)
    alone = runtime.transcribe(session, PROCESSOR, SOUNDS[1], timestamps=True)
    assert one.segments == alone.segments
    with (
        GenerationEngine(speech_session(GENERATION), 2) as other,
        pytest.raises(InputError, match="another bundle or target"),
    ):
        runtime.transcribe(session, PROCESSOR, SOUNDS[0], engine=other)
