"""A model of Whisper's kind that a few lines of NumPy compute: what is said depends on the window
and on all tokens so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session
from unit.runtime.stub_stage import stub_engines

BANDS, FRAMES, LENGTH, HASHES = 4, 100, 40, 97
SCORES, HEADS = "probabilities.attend", 2
RATE, HOP, N_FFT = 1000, 10, 40
WORDS = (
    "the", "cat", "sat", "on", "a", "mat", "and", "it", "was", "red", "so", "they", "all", "went",
    "home", "again", "now",
)  # fmt: skip
END, START, ENGLISH, FRENCH, TRANSCRIBE, TRANSLATE, BEFORE, NONE = range(20, 28)
FIRST = NONE + 1
VOCABULARY = FIRST + FRAMES // 2 + 1
GENERATION = {
    "decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": END,
    "lang_to_id": {"<|en|>": ENGLISH, "<|fr|>": FRENCH},
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
    "no_timestamps_token_id": NONE, "prev_sot_token_id": BEFORE, "is_multilingual": True,
    "suppress_tokens": [17, 18, 19, *range(START, NONE)], "max_length": LENGTH,
}  # fmt: skip
TEXT_ALONE = [*range(17, END), *range(START, VOCABULARY)]
"""What must not come where times are not asked for: this model says them all the same."""

TABLE = np.random.default_rng(2).standard_normal((HASHES, VOCABULARY)).astype(np.float32) * 3
LOOKED = np.random.default_rng(4).random((HASHES, HEADS, FRAMES // 2)).astype(np.float32)


def _context(feeds: Any) -> list[np.ndarray]:
    heard = np.asarray(feeds["input_features"], np.float64)
    places = np.floor(np.abs(heard.sum((1, 2))) * 1e3) % HASHES
    return [places.astype(np.float32)[:, None]]


def _rows(sums: np.ndarray, heard: np.ndarray, table: np.ndarray = TABLE) -> np.ndarray:
    each = np.arange(len(sums)) * len(heard) // len(sums)
    return table[(sums + heard[each]).astype(int) % HASHES]


def _query(feeds: Any) -> list[np.ndarray]:
    ids = feeds["decoder_input_ids"]
    return [_rows(np.cumsum(ids * np.arange(1, ids.shape[1] + 1), 1), feeds["heard"])]


def _step(feeds: Any) -> list[np.ndarray]:
    ids, places = feeds["decoder_input_ids"], feeds["position"]
    state = np.array(feeds["state:kept"])
    for row in range(len(ids)):
        state[row, places[row], 0] = ids[row] * (places[row] + 1)
    seen = np.arange(LENGTH) <= places[..., None]
    sums = np.where(seen, state[:, None, :, 0], 0).sum(-1)
    return [_rows(sums, feeds["heard"]), state, _rows(sums, feeds["heard"], LOOKED)]


def speech_session(generation: dict[str, Any] | None = None, *, scores: bool = False) -> Session:
    """Takes features ``[contexts, BANDS, FRAMES]`` and ids; holds `LENGTH` tokens, and gives the
    scores of its attention where asked."""
    features = TensorSpec("input_features", "float32", ("contexts", BANDS, FRAMES))
    heard = TensorSpec("heard", "float32", ("contexts", 1))
    bounds = (0, VOCABULARY - 1)
    ids = TensorSpec("decoder_input_ids", "int64", ("batch", "tokens"), bounds)
    new = TensorSpec("decoder_input_ids", "int64", ("batch", "new_tokens"), bounds)
    place = TensorSpec("position", "int64", ("batch", "new_tokens"))
    before, after = (
        TensorSpec(n, "float32", ("batch", LENGTH, 1)) for n in ("state:kept", "next:kept")
    )
    logits = TensorSpec("logits", "float32", ("batch", "tokens", VOCABULARY))
    stages = {
        "context": StageSpec((features,), (heard,)),
        "query": StageSpec((ids, heard), (logits,)),
        "step": StageSpec((new, heard, place, before), (logits, after)),
    }
    made = _step if scores else lambda feeds: _step(feeds)[:2]
    if scores:
        looked = TensorSpec(SCORES, "float32", ("batch", "new_tokens", HEADS, FRAMES // 2))
        stages["step"] = StageSpec(stages["step"].inputs, (logits, after, looked))
    engines = stub_engines(stages, {"context": _context, "query": _query, "step": made})
    dims = {name: Dim(name) for name in ("batch", "contexts", "tokens", "new_tokens")}
    return Session(
        "stub", stages, dims, engines, shared_batch="batch",
        decode=Decode("decoder_input_ids", LENGTH),
        generation=GENERATION if generation is None else generation,
    )  # fmt: skip


def speech_processor() -> Processor:
    """Its tokenizer, of whole words, and its features."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*WORDS, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": BANDS,
        "sampling_rate": RATE, "hop_length": HOP, "chunk_length": FRAMES * HOP // RATE,
        "n_fft": N_FFT,
    }  # fmt: skip
    files = {"tokenizer.json": tokenizer.to_str(), "preprocessor_config.json": json.dumps(settings)}
    return Processor(Path("toy"), {name: text.encode() for name, text in files.items()})


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32) * 0.1
