"""Windows that are heard again: the decisions are those of ``transformers``."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crossfuse import InputError, runtime
from crossfuse.runtime.generation.sampling import log_softmax
from crossfuse.runtime.speech.fallback import Fallback, compression_ratio
from unit.runtime.speech.toy_speech import (
    END,
    NONE,
    START,
    TEXT_ALONE,
    sound,
    speech_processor,
    speech_session,
)  # fmt: skip

PROCESSOR = speech_processor()
SILENT = NONE - 1
BEGIN = [START, NONE]


def library() -> Any:
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    return WhisperGenerationMixin


@pytest.mark.parametrize("vocabulary", [99, 51864, 70000])
@pytest.mark.parametrize("tokens", [[3, 9, 27, 81], [7] * 40, [5, 6, 7] * 9])
def test_compression_is_the_librarys(vocabulary: int, tokens: list[int]) -> None:
    expected = library()._retrieve_compression_ratio(torch.tensor(tokens), vocabulary)
    assert compression_ratio(np.array(tokens), vocabulary) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_likelihoods_are_the_librarys(temperature: float, seed: int) -> None:
    """The processed scores of each step, as the library keeps them, and their average."""
    session, taken = speech_session(), []
    context = session.encode(input_features=PROCESSOR.sounds(sound(0.6, seed)))
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "seed": seed}

    def watched(rows: Any, scores: np.ndarray) -> np.ndarray:
        taken.append(torch.from_numpy(scores[0] / np.float32(temperature or 1)))
        return scores

    found = runtime.generate(
        session, context, [BEGIN], max_length=20, suppress_tokens=TEXT_ALONE, logits_hook=watched,
        **how,
    )  # fmt: skip
    tokens = torch.from_numpy(found.new_tokens[0])
    expected = float(library()._retrieve_avg_logprobs(taken, tokens, temperature))
    assert found.unscaled[0].sum() / len(tokens) == pytest.approx(expected, abs=1e-5)


def decided(fallback: Fallback, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """What comes out, and the settings of each attempt."""
    from crossfuse.runtime.speech import fallback as module

    session, attempts = speech_session(), []
    inner = module.generate

    def watched(*given: Any, **settings: Any) -> Any:
        found = inner(*given, **settings)
        attempts.append((settings, found))
        return found

    monkeypatch.setattr(module, "generate", watched)
    context = session.encode(input_features=PROCESSOR.sounds(sound(0.6)))
    how = {"max_length": 16, "suppress_tokens": TEXT_ALONE, "seed": 1, "num_beams": 2}
    heard = fallback.hear(session, context, [*[5, 6], *BEGIN], how, 2)
    logits = session.start(context, prompt=[[5, 6, START]]).outputs["logits"][0, -1]
    silence = float(np.exp(log_softmax(logits))[SILENT])
    return (heard, silence), attempts


@pytest.mark.parametrize(
    ("ratio", "least", "silence"),
    [
        (None, None, None), (0.9, None, None), (1.4, None, None), (None, -2.0, None),
        (None, -1.0, None), (0.9, -2.0, None), (None, None, 0.0), (None, None, 0.6),
        (0.9, -1.0, 0.6), (None, -1.0, 0.0), (1.4, -1.0, 0.02), (0.9, -9.0, 0.0),
    ],
)  # fmt: skip
def test_windows_are_heard_until_the_library_is_content(
    ratio: float | None, least: float | None, silence: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    temperatures = (0.0, 0.4, 1.0)
    fallback = Fallback(temperatures, ratio, least, silence)
    (heard, chance), attempts = decided(fallback, monkeypatch)
    config = SimpleNamespace(
        compression_ratio_threshold=ratio, logprob_threshold=least,
        no_speech_threshold=None if least is None else silence,
    )  # fmt: skip
    again = SimpleNamespace(
        _retrieve_compression_ratio=library()._retrieve_compression_ratio,
        _retrieve_avg_logprobs=lambda scores, tokens, temperature: scores,
    )
    from transformers.generation.logits_process import WhisperNoSpeechDetection

    detector = WhisperNoSpeechDetection(SILENT, 2)
    detector._no_speech_prob = [chance]
    for number, (settings, found) in enumerate(attempts):
        sampled = {"do_sample": True, "temperature": temperatures[number], "num_beams": 1}
        expected = sampled if number else {"do_sample": False, "num_beams": 2}
        assert {name: settings[name] for name in expected} == expected
        tokens = found.new_tokens[0]
        average = float(found.unscaled[0].sum()) / len(tokens)
        needs, skips = library()._need_fallback(
            again, torch.from_numpy(tokens), [{"scores": average}], 0, [detector], config,
            heard_vocabulary(), temperatures[number],
        )  # fmt: skip
        last = number == len(attempts) - 1
        if least is None and silence is not None:
            skips = chance > silence
        assert needs == (not last) or (last and (number == 2 or skips))
        if last:
            assert heard.is_silent == skips
            assert heard.is_calm == (temperatures[number] < 0.5)
            assert heard.tokens.tolist() == tokens.tolist()


def heard_vocabulary() -> int:
    return int(speech_session().outputs[0].shape[-1])


def test_a_transcript_leaves_silence_out_and_begins_anew_behind_heat() -> None:
    session, given = speech_session(), sound(2.6, 3)
    how = {"suppress_tokens": [17, 18, 19, *range(START, NONE)], "seed": 0}
    plain = runtime.transcribe(session, PROCESSOR, given, language="fr", **how)
    same = runtime.transcribe(session, PROCESSOR, given, language="fr", temperature=(0,), **how)
    assert same.tokens.tolist() == plain.tokens.tolist()
    silent = runtime.transcribe(
        session, PROCESSOR, given, language="fr", no_speech_threshold=0, **how
    )
    assert (silent.text, len(silent.tokens)) == ("", 0)
    hot, calm = (
        runtime.transcribe(
            session, PROCESSOR, given, language="fr", temperature=temperatures,
            compression_ratio_threshold=0.01, **how,
        )
        for temperatures in ((0, 0.9), (0, 0.0))
    )  # fmt: skip
    assert calm.tokens.tolist() == plain.tokens.tolist()
    assert hot.tokens.tolist() != calm.tokens.tolist()
    steps = runtime.transcribe(
        session, PROCESSOR, given, language="fr", temperature=[0.0], stream=True, **how
    )
    assert [token for one in steps for token in one.tokens] == plain.tokens.tolist()
    short = {"language": "fr", "suppress_tokens": TEXT_ALONE}
    whole = runtime.transcribe(session, PROCESSOR, sound(0.7), **short)
    (piece,) = runtime.transcribe(
        session, PROCESSOR, sound(0.7), temperature=0, stream=True, **short
    )
    assert piece.text == whole.text


def test_thresholds_of_the_bundle_count_where_none_are_given() -> None:
    about = {"logprob_threshold": -1.0, "compression_ratio_threshold": 1.35}
    settings: dict[str, Any] = {"compression_ratio_threshold": None, "temperature": 0.7}
    found = Fallback.taken_from(settings, about)
    assert found == Fallback(logprob_threshold=-1.0)
    assert settings == {"temperature": 0.7}, "one temperature is the generation's"
    assert found.is_asked
    assert not Fallback.taken_from({}, {}).is_asked
    assert Fallback.taken_from({"temperature": 0}, {}).temperatures == (0,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": ()}, {"temperature": (0, -1)}, {"temperature": ("0",)},
        {"temperature": (math.nan,)}, {"logprob_threshold": "low"}, {"no_speech_threshold": True},
    ],
)  # fmt: skip
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="temperatures are numbers|a threshold is a number"):
        runtime.transcribe(speech_session(), PROCESSOR, sound(0.4), **wrong)


def test_silence_needs_a_token() -> None:
    session = speech_session({"decoder_start_token_id": START, "eos_token_id": END})
    with pytest.raises(InputError, match="no speech is not known"):
        runtime.transcribe(session, PROCESSOR, sound(0.4), no_speech_threshold=0.5)
