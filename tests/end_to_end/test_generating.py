"""Checkpoints exported with their processors, and generated from: in words as ``transformers``
says them, by the command, in a process without PyTorch and transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import crossfuse
from crossfuse import runtime
from marian_files import write_marian_files
from processor_checkpoints import tokenizer

pytestmark = pytest.mark.slow

WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"):
    sys.modules[name] = None
from crossfuse.cli import main
main(sys.argv[1:])
"""
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 32,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
SQUARE = {"height": 16, "width": 16}
WORDS_ALONE = {"suppress_tokens": [0, 1, 3, *range(20, 64)], "min_new_tokens": 3}
"""Of random weights: words that the tokenizer has, and the end."""


def blip() -> tuple[Any, Any]:
    text = TEXT | {"encoder_hidden_size": 32, "projection_dim": 16, "bos_token_id": 1}
    text |= {"sep_token_id": 2, "pad_token_id": 0, "eos_token_id": 2}
    config = transformers.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    images = transformers.BlipImageProcessor(size=SQUARE)
    model = transformers.BlipForConditionalGeneration(config)
    return model, transformers.BlipProcessor(images, tokenizer())


def trocr() -> tuple[Any, Any]:
    encoder = transformers.ViTConfig(**VISION)
    decoder = transformers.TrOCRConfig(
        vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=48,
        max_position_embeddings=32, cross_attention_hidden_size=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 2
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 2
    images = transformers.ViTImageProcessor(size=SQUARE)
    return model, transformers.TrOCRProcessor(images, tokenizer())


def bart() -> tuple[Any, Any]:
    config = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None, forced_bos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config), tokenizer()


def t5() -> tuple[Any, Any]:
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, pad_token_id=0,
        eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config), tokenizer()


def marian() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = write_marian_files(Path(name))
        words = transformers.MarianTokenizer.from_pretrained(folder)
    config = transformers.MarianConfig(
        vocab_size=words.vocab_size, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=32, pad_token_id=words.pad_token_id,
        eos_token_id=0, decoder_start_token_id=words.pad_token_id, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.MarianMTModel(config), words


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "blip": blip, "trocr": trocr, "bart": bart, "t5": t5, "marian": marian
}  # fmt: skip
GIVEN: dict[str, list[dict[str, Any]]] = {
    "blip": [{"image": True}, {"image": True, "text": "a photo of"}],
    "trocr": [{"image": True}],
    "bart": [{"text": "what is in this picture ?"}],
    "t5": [{"text": "the small cat"}],
    "marian": [{"text": "Tom asked his teacher, Größe"}, {"text": ">>deu<< It was  the best"}],
}


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Any, Path]:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = MODELS[request.param]()
    model = model.eval()
    for parameter in model.parameters():
        parameter.data *= 4
    model.save_pretrained(folder / "checkpoint")
    # Positions that are computed are no part of a checkpoint.
    model = type(model).from_pretrained(folder / "checkpoint").eval()
    processor.save_pretrained(folder / "checkpoint")
    crossfuse.export(f"hf:{folder / 'checkpoint'}", folder / "bundle", quick=True)
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return request.param, model, processor, folder


def command(bundle: Path, *arguments: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "generate", str(bundle), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_said_is_what_the_library_says(exported: tuple[str, Any, Any, Path]) -> None:
    name, model, processor, folder = exported
    image = Image.open(folder / "image.png")
    for given in GIVEN[name]:
        asked = {"images" if kind == "image" else kind: image if kind == "image" else value
                 for kind, value in given.items()}  # fmt: skip
        inputs = processor(**asked, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=8, **WORDS_ALONE)
        words = getattr(processor, "tokenizer", processor)
        expected = words.decode(tokens[0], skip_special_tokens=True).strip()
        options = [f"--{kind}={folder / 'image.png' if kind == 'image' else value}"
                   for kind, value in given.items()]  # fmt: skip
        options += ["--max-new-tokens=8", *(f"--set={n}={v}" for n, v in WORDS_ALONE.items())]
        assert command(folder / "bundle", *options) == expected + "\n"
        assert len(expected.split()) > (2 if name != "marian" else 0), (
            "random weights say something"
        )
        found = json.loads(command(folder / "bundle", *options, "--beams=2", "--json"))
        with torch.no_grad():
            tokens = model.generate(
                **inputs, do_sample=False, num_beams=2, max_new_tokens=8, **WORDS_ALONE
            )
        assert found["text"] == words.decode(tokens[0], skip_special_tokens=True).strip()


def test_the_processor_stays_when_a_target_is_built(exported: tuple[str, Any, Any, Path]) -> None:
    _, _, _, folder = exported
    before = dict(runtime.load_processor(folder / "bundle").files)
    assert "tokenizer.json" in before
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    assert set(before) <= set(manifest["files"])
    crossfuse.build(folder / "bundle", "onnx")
    assert dict(runtime.load_processor(folder / "bundle").files) == before
