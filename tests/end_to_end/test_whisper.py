"""Whisper against ``transformers``, token for token: tiny.en with its real weights on real speech,
and a model of several languages that is made here."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import crossfuse
from crossfuse import runtime
from crossfuse.core.linear_ledger import INT8
from crossfuse.core.media_files import read_sound
from crossfuse.runtime.speech.spoken_words import words_of
from processor_checkpoints import tokenizer

ASSETS = Path(os.environ.get("CROSSFUSE_ASSETS", Path(__file__).parents[3] / "shared"))
CHECKPOINT, SOUND = ASSETS / "models" / "whisper-tiny.en", ASSETS / "audio" / "two_cities.wav"

pytestmark = pytest.mark.slow
with_assets = pytest.mark.skipif(
    not (CHECKPOINT.is_dir() and SOUND.is_file()),
    reason=f"no Whisper checkpoint and speech under {ASSETS}",
)


def theirs(model: Any, extractor: Any, sound: np.ndarray, **how: Any) -> list[int]:
    """Tokens of the library's own generation, without those in front and the end."""
    given = extractor(
        sound, sampling_rate=extractor.sampling_rate, return_tensors="pt", truncation=False,
        padding="longest" if len(sound) > extractor.n_samples else "max_length",
    )  # fmt: skip
    with torch.no_grad():
        tokens = model.generate(given.input_features, do_sample=False, **how)
    return tokens[0].tolist()


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tiny.en."""
    path = tmp_path_factory.mktemp("english") / "bundle"
    crossfuse.export(
        f"hf:{CHECKPOINT}", path, drop_outputs=["encoder_last_hidden_state"],
        keep_probabilities=["alignment_heads"],
    )  # fmt: skip
    return path


@with_assets
def test_transcripts_of_real_speech_are_the_librarys(english: Path) -> None:
    bundle = crossfuse.open_bundle(english)
    assert bundle.ledger.counts("ort-cpu") == bundle.ledger.counts() == {"self": 8, "cross": 4}
    assert {row.captured for row in bundle.ledger} == {"interface"}
    assert set(bundle.manifest.stages) == {"context", "query", "step"}
    assert bundle.manifest.source == {
        "kind": "huggingface",
        "name": f"hf:{CHECKPOINT}",
        "drop_outputs": ["encoder_last_hidden_state"],
        "keep_probabilities": ["alignment_heads"],
        "inputs_from": "the checkpoint's processor",
    }
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32
    ).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(CHECKPOINT)
    words = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    sound = read_sound(SOUND, 16000)
    long = np.concatenate([sound, sound[: 16000 * 9]])
    processor = runtime.load_processor(english)
    conditioned = {"return_timestamps": True, "condition_on_prev_tokens": True}
    cases: list[tuple[np.ndarray, dict[str, Any], dict[str, Any]]] = [
        (sound, {}, {}),
        (sound, {"timestamps": True}, conditioned),
        (sound, {"num_beams": 2}, {"num_beams": 2}),
        (long, {}, conditioned),
        (long, {"condition_on_previous": False, "timestamps": True}, {"return_timestamps": True}),
        (
            sound, {"prompt": "Charles Dickens"},
            {"prompt_ids": words.get_prompt_ids("Charles Dickens", return_tensors="pt")},
        ),
    ]  # fmt: skip
    with runtime.load(english) as session:
        for given, mine, how in cases:
            found = runtime.transcribe(session, processor, given, **mine)
            expected = theirs(model, extractor, given, **how)
            expected = [t for t in expected if t != 50256]
            begin = expected.index(next(iter(found.tokens.tolist())))
            assert found.tokens.tolist() == expected[begin:], mine
            assert begin <= 2
            text = words.decode(
                [t for t in expected if t < 50257], skip_special_tokens=True
            )  # fmt: skip
            assert found.text == text
            assert text.strip().startswith("It was the best of times")
    assert found.language is None


def word_errors(said: str, truth: str) -> int:
    """The fewest insertions, deletions and substitutions of words between two texts."""
    theirs, ours = truth.split(), said.split()
    row = list(range(len(ours) + 1))
    for i, word in enumerate(theirs, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(ours, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


@pytest.fixture(scope="module")
def without_probabilities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of tiny.en for its words alone, as `benchmarks/whisper_int8.py` makes it: a quick
    one, since points of extreme inputs let most of its layers stay in fp32, a metric or not."""
    path = tmp_path_factory.mktemp("words") / "bundle"
    return crossfuse.export(
        f"hf:{CHECKPOINT}", path, drop_outputs=["encoder_last_hidden_state"], quick=True
    ).path


@pytest.fixture(scope="module")
def halves(without_probabilities: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The halves of the speech as the model's inputs, with the tokens that fp32 hears: what int8 is
    calibrated on and judged by."""
    folder = tmp_path_factory.mktemp("halves")
    processor, prompt = runtime.load_processor(without_probabilities), [50257, 50362]
    with runtime.load(without_probabilities, "ort-cpu") as session:
        for number, part in enumerate(np.array_split(read_sound(SOUND, 16000), 2)):
            features = np.asarray(processor.sounds(part)[0], np.float32)
            features = features.reshape(1, *features.shape[-2:])
            context = session.encode(input_features=features)
            heard = runtime.generate(session, context, [prompt]).new_tokens[0]
            np.savez(
                folder / f"{number}.npz",
                input_features=features,
                decoder_input_ids=np.array([[*prompt, *heard]]),
                prompt=np.array(prompt),
                heard=np.array(heard),
            )
    return folder


@with_assets
def test_several_recordings_are_each_as_alone(english: Path) -> None:
    """Of one to three windows, and parts of one."""
    rate = 16_000
    whole = read_sound(SOUND, rate)
    parts = [whole[: 5 * rate], np.concatenate([whole, whole[: 9 * rate]]), whole[3 * rate :]]
    with runtime.load(english, stages=["context", "step"]) as session:
        processor = runtime.load_processor(english)
        found = runtime.transcribe_several(session, processor, parts, at_once=2, timestamps=True)
        for part, one in zip(parts, found, strict=True):
            alone = runtime.transcribe(session, processor, part, timestamps=True)
            assert (one.text, one.segments) == (alone.text, alone.segments)
            assert one.text


@with_assets
@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_int8_says_the_words_of_fp32(
    without_probabilities: Path, halves: Path, tmp_path: Path, target: str
) -> None:
    """Judged by the words of the halves; heard as a whole, 0.5% of the words may be others."""
    path = shutil.copytree(without_probabilities, tmp_path / "int8")
    metric = Path(__file__).parents[2] / "benchmarks" / "spoken_words.py"
    bundle = crossfuse.build(
        path,
        target,
        precision="mixed-int8",
        calibrate=halves,
        metric=f"{metric}:words",
        max_drop=0.005,
    )
    entry = bundle.target(target)
    assert entry.parity is not None
    assert entry.parity["metric"]["fp32"] > 0.99, "fp32 says what fp32 said"
    integers = [row.site for row in entry.linears if INT8 in row.became]
    assert len(integers) >= 0.5 * len(entry.linears) > 30
    processor, sound = runtime.load_processor(without_probabilities), read_sound(SOUND, 16000)
    with runtime.load(without_probabilities, "ort-cpu") as wide, runtime.load(path, target) as low:
        truth = runtime.transcribe(wide, processor, sound).text
        said = runtime.transcribe(low, processor, sound).text
    assert len(truth.split()) > 60
    assert word_errors(said, truth) <= 0.005 * len(truth.split())


@with_assets
def test_words_of_real_speech_are_the_librarys(english: Path) -> None:
    """Texts and times, as the library rounds these; of a short sound and of one in windows."""
    pipeline = transformers.pipeline(
        "automatic-speech-recognition", str(CHECKPOINT), dtype=torch.float32
    )
    sound = read_sound(SOUND, 16000)
    processor = runtime.load_processor(english)
    long = np.concatenate([sound, sound[: 16000 * 9]])
    with runtime.load(english, stages=["context", "step"]) as session:
        for given, beams in ((sound, 1), (sound[: 16000 * 7], 5), (long, 1)):
            found = runtime.transcribe(
                session, processor, given, word_timestamps=True, condition_on_previous=False,
                num_beams=beams,
            )  # fmt: skip
            expected = pipeline(
                given.copy(), return_timestamps="word", generate_kwargs={"num_beams": beams}
            )["chunks"]
            assert [one.text for one in found.words] == [one["text"] for one in expected]
            times = np.array([(one.start, one.end) for one in found.words])
            theirs = np.array([one["timestamp"] for one in expected], float)
            assert np.abs(times - theirs).max() < 0.0101
            assert len(found.words) > 10


@with_assets
def test_the_example(english: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    sys.modules.pop("whisper", None)
    import whisper

    found = whisper.transcribe(str(CHECKPOINT), SOUND, english, timestamps=True)
    assert found.text.strip().startswith("It was the best of times")
    assert all(0 <= one.start <= one.end <= 30 for one in found.segments)
    assert len(found.segments) > 3


@with_assets
def test_features_of_real_speech_are_the_extractors(english: Path) -> None:
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(CHECKPOINT)
    sound = read_sound(SOUND, 16000)
    padded = np.zeros(480000, np.float32)
    padded[: len(sound)] = sound
    found = runtime.load_processor(english).sounds(SOUND)[0]
    expected = extractor._np_extract_fbank_features(padded[None], "cpu")[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    torchs = extractor(sound, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(found, torchs, atol=3e-5)
    assert (np.abs(found - torchs) > 1e-5).mean() < 1e-4


LANGUAGES = {"<|en|>": 24, "<|fr|>": 25, "<|de|>": 26}
TASKS = {"transcribe": 27, "translate": 28}
FIRST, SIZE = 32, 32 + 51


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A model of several languages, with random weights, that hears a second at once."""
    folder = tmp_path_factory.mktemp("several")
    torch.manual_seed(1)
    config = transformers.WhisperConfig(
        vocab_size=SIZE, num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_source_positions=50, max_target_positions=48, pad_token_id=22,
        bos_token_id=22, eos_token_id=22, decoder_start_token_id=23,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data *= 6
    settings = model.generation_config
    settings.lang_to_id, settings.task_to_id = LANGUAGES, TASKS
    settings.is_multilingual, settings.no_timestamps_token_id = True, FIRST - 1
    settings.prev_sot_token_id, settings.max_length = 29, 48
    settings.suppress_tokens = [20, 21, *range(23, FIRST - 1)]
    settings.begin_suppress_tokens = [22]
    settings.alignment_heads = [[0, 1], [0, 3]]
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = transformers.WhisperProcessor(extractor, tokenizer())
    for part in (model, processor):
        part.save_pretrained(folder / "checkpoint")
    crossfuse.export(
        f"hf:{folder / 'checkpoint'}", folder / "bundle", quick=True,
        keep_probabilities=["alignment_heads"],
    )  # fmt: skip
    return model, extractor, folder / "bundle"


@pytest.mark.parametrize("seconds", [0.6, 3.7])
def test_languages_tasks_and_times_are_the_librarys(
    several: tuple[Any, Any, Path], seconds: float
) -> None:
    model, extractor, path = several
    processor = runtime.load_processor(path)
    asked: list[dict[str, Any]] = [
        {}, {"language": "fr"}, {"task": "translate"}, {"language": "de", "task": "translate"},
        {"timestamps": True}, {"language": "en", "timestamps": True, "num_beams": 3},
        {"repetition_penalty": 1.7},
    ]  # fmt: skip
    heard = set()
    with runtime.load(path) as session:
        for seed, mine in enumerate(asked):
            times = np.arange(int(16000 * seconds)) / 16000
            generator = np.random.default_rng(seed)
            sound = np.sin(times * generator.uniform(1000, 9000)) * generator.uniform(0.05, 0.5)
            sound = (sound + 0.1 * generator.standard_normal(len(times))).astype(np.float32)
            how = {name: value for name, value in mine.items() if name != "timestamps"}
            how["return_timestamps"] = bool(mine.get("timestamps")) or seconds > 1
            how["condition_on_prev_tokens"] = True
            found = runtime.transcribe(session, processor, sound, **mine)
            expected = theirs(model, extractor, sound, **how)
            skipped = {22, 23, *LANGUAGES.values(), *TASKS.values(), FIRST - 1}
            assert found.tokens.tolist() == [t for t in expected if t not in skipped], mine
            assert found.language == mine.get("language", found.language)
            heard.add(found.language)
    assert heard <= {"en", "fr", "de"}
    assert len(heard) > 1


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("seconds", [0.6, 3.7])
def test_times_of_tokens_are_the_librarys(
    several: tuple[Any, Any, Path], seconds: float, beams: int
) -> None:
    model, extractor, path = several
    processor = runtime.load_processor(path)
    generator = np.random.default_rng(5)
    sound = 0.1 * generator.standard_normal(int(16000 * seconds)).astype(np.float32)
    given = extractor(
        sound, sampling_rate=16000, return_tensors="pt", truncation=False,
        padding="longest" if seconds > 1 else "max_length", return_attention_mask=True,
    )  # fmt: skip
    with torch.no_grad():
        expected = model.generate(
            given.input_features, attention_mask=given.attention_mask, do_sample=False,
            return_timestamps=True, return_token_timestamps=True, language="en", num_beams=beams,
            return_segments=True,
        )  # fmt: skip
    with runtime.load(path) as session:
        found = runtime.transcribe(
            session, processor, sound, word_timestamps=True, language="en", num_beams=beams,
            condition_on_previous=False,
        )  # fmt: skip
    segments = expected["segments"][0]
    assert len(found.segments) == len(segments)
    count = 0
    for mine, one in zip(found.segments, segments, strict=True):
        assert list(mine.tokens) == one["tokens"].tolist()
        ends = [(end, end) for end in one["token_timestamps"].tolist()]
        words = words_of(processor, mine.tokens, ends, language="en", first=FIRST)
        assert [word.text for word in mine.words] == [word.text for word in words]
        np.testing.assert_allclose(
            [word.end for word in mine.words], [word.end for word in words], atol=0.005
        )
        count += len(words)
    assert count > 2
