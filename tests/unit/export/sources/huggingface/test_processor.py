"""A checkpoint's processor: whole, in parts, without a part, or none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import transformers

from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.processor import (
    NoProcessorError,
    as_processor,
    load_processor,
)
from processor_checkpoints import save_checkpoint, tokenizer


def test_a_processor_with_its_parts(tmp_path: Path) -> None:
    found = load_processor(save_checkpoint("clip", tmp_path))
    assert isinstance(found.call, transformers.CLIPProcessor)
    assert (found.kinds, found.is_part, found.rate) == (("images", "text"), False, None)
    assert found.words is found.call.tokenizer
    assert found.alone("text").call is found.words


def test_parts_that_no_processor_holds_together(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "speech-encoder-decoder"}')
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=1000).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    found = load_processor(tmp_path)
    assert (found.call, found.kinds, found.rate) == (None, ("text", "audio"), 1000)


def test_a_part_that_can_not_be_loaded_is_left_out(tmp_path: Path) -> None:
    found = load_processor(save_checkpoint("qwen2_vl", tmp_path))
    assert found.kinds[:2] == ("images", "text")
    if "videos" not in found.kinds:
        assert "orchvision" in (found.why_not("videos") or "")
    assert found.why_not("images") is None


def test_none_at_all_or_one_that_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(NoProcessorError, match="holds no processor"):
        load_processor(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"vocab_file": "/etc/passwd"}))
    with pytest.raises(NoProcessorError, match="outside of the folder"):
        load_processor(tmp_path)


def test_code_that_comes_along_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    mine = {"AutoTokenizer": ["mine.Mine", None], "AutoProcessor": "mine.Mine"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": mine}))
    with contextlib.suppress(NoProcessorError):
        load_processor(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_processor() -> None:
    assert as_processor(tokenizer()).kinds == ("text",)
    with pytest.raises(InputError, match="no processor"):
        as_processor("a text")
