"""`crossfuse generate`: text as it comes, and what is refused. Over a toy model; real ones are in
``tests/end_to_end/test_generating.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import crossfuse.runtime
from crossfuse import InputError
from crossfuse.cli import app
from crossfuse.commands.generate import generate
from crossfuse.runtime.session import Session
from unit.runtime.speech.toy_speech import (
    GENERATION,
    SCORES,
    TEXT_ALONE,
    WORDS,
    sound,
    speech_processor,
    speech_session,
)  # fmt: skip

BUNDLE = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
PLAIN: dict[str, Any] = {
    "decoder_start_token_id": 21, "eos_token_id": 20, "begin_suppress_tokens": [20],
    "suppress_tokens": [one for one in range(17, 79) if one != 20],
}  # fmt: skip


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", sound(0.7))
    return tmp_path / "a.npy"


@pytest.fixture
def about(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of the model that is opened in place of a bundle's."""
    settings = dict(GENERATION)

    def opened(*_: Any, stages: Any) -> Session:
        return speech_session(settings, scores=True)

    monkeypatch.setattr(crossfuse.runtime, "load", opened)
    monkeypatch.setattr(crossfuse.runtime, "load_processor", lambda _: speech_processor())
    return settings


def run(*arguments: Any) -> str:
    done = CliRunner().invoke(app, ["generate", str(BUNDLE), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_speech(about: dict[str, Any], audio: Path) -> None:
    about["suppress_tokens"] = TEXT_ALONE
    expected = crossfuse.runtime.transcribe(
        speech_session(about), speech_processor(), audio, language="fr"
    )
    assert run("--audio", audio, "--language", "fr") == expected.text + "\n"
    found = json.loads(run("--audio", audio, "--language", "fr", "--json"))
    assert (found["text"], found["language"], found["target"]) == (expected.text, "fr", "stub")
    assert found["tokens"] == expected.tokens.tolist()


def test_speech_with_times(about: dict[str, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", sound(2.5))
    lines = run("--audio", tmp_path / "long.npy", "--timestamps").splitlines()
    expected = crossfuse.runtime.transcribe(
        speech_session(), speech_processor(), tmp_path / "long.npy", timestamps=True
    )
    assert lines == [
        f"[{one.start:.2f} – {one.end:.2f}] {one.text.strip()}" for one in expected.segments
    ]
    assert len(lines) > 1


def test_words_with_times(about: dict[str, Any], audio: Path) -> None:
    about["alignment_outputs"] = [[SCORES, 0]]
    expected = crossfuse.runtime.transcribe(
        speech_session(about, scores=True), speech_processor(), audio, word_timestamps=True
    )
    assert run("--audio", audio, "--word-timestamps").splitlines() == [
        f"[{one.start:.2f} – {one.end:.2f}] {one.text.strip()}" for one in expected.words
    ]
    segments = json.loads(run("--audio", audio, "--word-timestamps", "--json"))["segments"]
    words = [word for segment in segments for word in segment["words"]]
    assert words == [one._asdict() for one in expected.words]
    assert len(words) > 1


@pytest.mark.parametrize("beams", [1, 2])
def test_an_answer(about: dict[str, Any], audio: Path, beams: int) -> None:
    about.clear()
    about.update(PLAIN)
    options = ("--audio", audio, "--text", "the mat", "--beams", beams, "--max-new-tokens", 5)
    printed = run(*options)
    found = json.loads(run(*options, "--json"))
    words = [WORDS[token] for token in found["tokens"] if token < len(WORDS)]
    assert found["text"] == " ".join(["the mat", *words])
    assert printed == found["text"] + "\n"
    assert 0 < len(words) <= 5


def test_several_sounds(about: dict[str, Any], audio: Path, tmp_path: Path) -> None:
    """As `--audio *.wav` gives them: each as alone, however many are heard at once."""
    about["suppress_tokens"] = TEXT_ALONE
    other = tmp_path / "b.npy"
    np.save(other, sound(0.5, seed=3))
    texts = [run("--audio", one, "--language", "fr") for one in (audio, other)]
    assert texts[0] != texts[1]
    printed = run("--audio", audio, other, "--language", "fr")
    assert printed == "".join(
        f"{one}\n{text}" for one, text in zip((audio, other), texts, strict=True)
    )
    found = json.loads(run("--audio", audio, other, "--language", "fr", "--json"))
    assert [one["file"] for one in found["answers"]] == [str(audio), str(other)]
    assert [one["text"] + "\n" for one in found["answers"]] == texts
    assert found["target"] == "stub"
    about["suppress_tokens"] = GENERATION["suppress_tokens"]
    long = tmp_path / "c.npy"
    np.save(long, sound(2.3, seed=5))
    files = (audio, long, other)
    for how in ((), ("--timestamps",), ("--text", "the mat")):
        each = [json.loads(run("--audio", one, *how, "--json")) for one in files]
        said = [run("--audio", one, *how) for one in files]
        if "--timestamps" not in how:
            # Words of this tokenizer begin with no space: pieces of long texts have none between.
            said = [one["text"] + "\n" for one in each]
        shown = "".join(f"{file}\n{text}" for file, text in zip(files, said, strict=True))
        for one, file in zip(each, files, strict=True):
            del one["target"], one["provider"]
            one["file"] = str(file)
        for at_once in (1, 2, 8):
            asked = ("--audio", *files, *how, "--at-once", at_once)
            assert json.loads(run(*asked, "--json"))["answers"] == each
            assert run(*asked) == shown


def test_any_setting(about: dict[str, Any], audio: Path) -> None:
    about.clear()
    about.update(PLAIN)
    options = ("--audio", audio, "--set", "max_new_tokens=3", "--set", "suppress_tokens=[0, 20]")
    tokens = json.loads(run(*options, "--json"))["tokens"]
    assert len(tokens) == 3
    assert not {0, 20} & set(tokens)


def test_refusals(about: dict[str, Any], audio: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"settings": ["top_k"]}, "NAME=VALUE"),
        ({"audio": audio, "settings": ["beams=3"]}, "no such setting"),
        ({"audio": audio, "image": audio}, "takes no image"),
        ({"text": "the cat"}, "no audio"),
        ({"more": [audio]}, "sounds behind --audio"),
        ({"text": "the cat", "language": "en"}, "--language is for sounds"),
    ]
    for options, words in cases:
        with pytest.raises(InputError, match=words):
            generate(BUNDLE, **options)
    about.clear()
    about.update(PLAIN)
    with pytest.raises(InputError, match="--timestamps is for sounds"):
        generate(BUNDLE, audio=audio, timestamps=True)
    with pytest.raises(InputError, match="--word-timestamps is for sounds"):
        generate(BUNDLE, audio=audio, word_timestamps=True)
