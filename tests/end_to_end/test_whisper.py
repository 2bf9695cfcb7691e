"""Whisper tiny.en with its real weights on real speech: the transcript of the bundles is eager
PyTorch's, token for token."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import crossfuse

ASSETS = Path(os.environ.get("CROSSFUSE_ASSETS", Path(__file__).parents[3] / "shared"))
CHECKPOINT, SOUND = ASSETS / "models" / "whisper-tiny.en", ASSETS / "audio" / "two_cities.wav"

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT.is_dir() and SOUND.is_file()),
    reason=f"no Whisper checkpoint and speech under {ASSETS}",
)


@pytest.mark.slow
def test_transcript_is_eagers_token_for_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    sys.modules.pop("whisper", None)
    import whisper
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    tokens = whisper.transcribe(str(CHECKPOINT), SOUND, tmp_path)["tokens"]
    bundle = crossfuse.open_bundle(tmp_path / "bundle")
    assert bundle.ledger.counts("ort-cpu") == bundle.ledger.counts() == {"self": 8, "cross": 4}
    assert {row.captured for row in bundle.ledger} == {"interface"}
    assert set(bundle.manifest.stages) == {"context", "query", "step"}
    assert bundle.manifest.source == {
        "kind": "huggingface",
        "name": f"hf:{CHECKPOINT}",
        "drop_outputs": ["encoder_last_hidden_state"],
        "inputs_from": "the checkpoint's processor",
    }
    eager = WhisperForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    features = torch.from_numpy(whisper.log_mel(str(CHECKPOINT), SOUND))
    with torch.no_grad():
        expected = eager.generate(features, do_sample=False, num_beams=1)[0].tolist()
    prompt = 2
    end = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    if expected[:prompt] != tokens[:prompt]:
        expected = tokens[:prompt] + expected
    assert tokens == (expected if expected[-1] == end else [*expected, end])
    text = (
        AutoTokenizer.from_pretrained(CHECKPOINT).decode(tokens, skip_special_tokens=True).strip()
    )
    assert text.startswith("It was the best of times, it was the worst of times")
    assert len(tokens) > 60
