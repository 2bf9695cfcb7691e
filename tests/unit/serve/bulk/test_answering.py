"""Texts of rows: each as `generate` or `transcribe` gives it alone, and failures apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from crossfuse import InputError, runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.errors import CrossfuseError
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from crossfuse.serve.bulk.answering import Answering, require_generates
from crossfuse.serve.bulk.questions import Question
from crossfuse.serve.limits import Limits
from unit.runtime.speech.toy_speech import GENERATION, sound, speech_processor, speech_session
from unit.runtime.toy_decoder import IMAGES, VOCABULARY, toy_session

RNG = np.random.default_rng(8)
NO_WORDS = Processor(Path("none"), {})
LIMITS = Limits(max_batch=1 << 30)


def answers(
    session: Session, processor: Processor, settings: Mapping[str, Any], rows: list[Question]
) -> dict[str, Any]:
    answering = Answering(session, processor, settings, 3, LIMITS)
    try:
        found = list(answering.answers(rows))
    finally:
        answering.close()
    assert [name for name, _ in found] == [row.name for row in rows]
    return dict(found)


def of_arrays(name: str, **more: Any) -> Question:
    return Question(name, arrays={"image": IMAGES[:1] * len(name), **more})


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_are_as_they_would_be_alone(beams: int) -> None:
    session = toy_session({"bos_token_id": 1, "num_beams": beams})
    prompts = [RNG.integers(0, VOCABULARY, (1, n)) for n in (1, 5, 2, 9, 3, 4, 4)]
    rows = [of_arrays("a" * (1 + i), ids=ids) for i, ids in enumerate(prompts)]
    rows.append(of_arrays("without"))
    found = answers(session, NO_WORDS, {"max_new_tokens": 4}, rows)
    for row, ids in zip(rows, [*prompts, np.array([[1]])], strict=True):
        context = session.encode(image=row.arrays["image"])
        alone = runtime.generate(session, context, ids, max_new_tokens=4)
        assert found[row.name]["tokens"] == alone.new_tokens[0].tolist()
        assert found[row.name]["score"] == pytest.approx(alone.scores[0], rel=1e-5)
        assert found[row.name]["ended"] is False
        assert "text" not in found[row.name]


def test_what_is_wrong_with_a_row_touches_no_other() -> None:
    session = toy_session({"bos_token_id": 1})
    bad = {
        "nan": of_arrays("nan", image=np.full((1, VOCABULARY), np.nan, np.float32)),
        "two": of_arrays("two", image=np.ones((2, VOCABULARY), np.float32)),
        "ids": of_arrays("ids", ids=np.array([[VOCABULARY + 5]])),
        "rows": of_arrays("rows", ids=np.array([[1], [2]])),
        "long": of_arrays("long", ids=np.ones((1, 50), np.int64)),
        "other": of_arrays("other", more=np.ones(1)),
        "text": Question("text", text="hello"),
    }
    rows = [of_arrays("first"), *bad.values(), of_arrays("last")]
    found = answers(session, NO_WORDS, {"max_new_tokens": 3}, rows)
    assert {n for n, one in found.items() if isinstance(one, CrossfuseError)} == set(bad)
    assert [len(found[name]["tokens"]) for name in ("first", "last")] == [3, 3]


def test_speech(tmp_path: Path) -> None:
    session, processor = speech_session(), speech_processor()
    for name, seconds in (("a", 0.7), ("b", 2.5)):
        np.save(tmp_path / f"{name}.npy", sound(seconds))
    (tmp_path / "c.npy").write_bytes(b"no sound")
    rows = [Question(name, audio=tmp_path / f"{name}.npy") for name in "abc"]
    settings = {"language": "fr", "timestamps": True}
    found = answers(session, processor, settings, rows)
    for name in "ab":
        expected = runtime.transcribe(session, processor, tmp_path / f"{name}.npy", **settings)
        assert found[name]["text"] == expected.text.strip()
        assert found[name]["tokens"] == expected.tokens.tolist()
        assert found[name]["segments"] == [one.to_plain() for one in expected.segments]
        assert found[name]["language"] == "fr"
    assert "the sound can't be read" in str(found["c"])


def test_texts(tmp_path: Path) -> None:
    """A model that is asked in words, and answers in words."""
    about = {"decoder_start_token_id": 21, "suppress_tokens": [n for n in range(17, 79) if n != 20]}
    session, processor = speech_session(about), speech_processor()
    np.save(tmp_path / "a.npy", sound(0.7))
    row = Question("a", text="the mat", audio=tmp_path / "a.npy")
    found = answers(session, processor, {"max_new_tokens": 5}, [row])["a"]
    assert found["text"].startswith("the mat ")
    assert found["text"] == processor.decode([0, 5, *found["tokens"]])


def test_refused_before_anything_runs() -> None:
    old = open_bundle(Path(__file__).parents[3] / "data" / "bundle-0.1.0").manifest
    with pytest.raises(InputError, match="no step stage"):
        require_generates(old, {})
    assert "no_timestamps_token_id" in GENERATION
