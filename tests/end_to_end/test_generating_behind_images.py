"""Decoder-only models that read an image in front of a text: their steps give the tokens that eager
PyTorch and ``transformers`` give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import crossfuse
from coverage.shrink import tiny_model
from crossfuse import InputError, ModelSpec, runtime
from crossfuse.cli import app
from processor_checkpoints import CHECKPOINTS

WIDTH, HEADS, WORDS, PATCHES = 16, 2, 40, 5
PROMPTS = ((7,), (9, 3, 5), (4, 8))


class Asks(nn.Module):
    """A learned start and an image in front of a text, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.start = nn.Linear(6, WIDTH), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(32, WIDTH)
        self.read, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.write = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor, image: Tensor) -> dict[str, Tensor]:
        start = self.start.expand(image.shape[0], -1, -1)
        x = torch.cat([start, self.look(image), self.words(ids)], 1)
        x = x + self.places(torch.arange(x.shape[1]))
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.read(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        return {"logits": self.write(x[:, 1 + PATCHES :])}


def test_own_module_writes_behind_an_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Asks().eval()
    spec = ModelSpec(
        module,
        {"ids": torch.randint(0, WORDS, (2, 6)), "image": torch.randn(2, PATCHES, 6)},
        {"ids": {0: "batch:1:8", 1: "tokens:1:20"}, "image": {0: "batch"}},
        context=("image",),
        decode="ids",
    )
    bundle = crossfuse.export(spec, tmp_path / "bundle", quick=True)
    assert bundle.manifest.prefix is not None
    assert bundle.manifest.prefix.rows == 1 + PATCHES
    image = torch.randn(1, PATCHES, 6)
    with runtime.load(bundle.path, "ort-cpu", stages=["context", "step"]) as session:
        context = session.encode(image=image.numpy())
        found = runtime.generate(session, context, [list(p) for p in PROMPTS], max_new_tokens=6)
    for prompt, got in zip(PROMPTS, found.new_tokens, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(6):
            with torch.no_grad():
                logits = module(ids, image)["logits"]
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        assert got.tolist() == ids[0, len(prompt) :].tolist()


def made(name: str) -> Any:
    """A tiny model whose tokens differ."""
    model = tiny_model(name)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    return model.eval()


def of_the_library(model: Any, given: Mapping[str, Any], **settings: Any) -> list[int]:
    ids = given["input_ids"]
    with torch.no_grad():
        found = model.generate(**given, do_sample=False, eos_token_id=2, pad_token_id=0, **settings)
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens


def asked(model: Any, whole: ModelSpec, ids: Tensor) -> dict[str, Any]:
    """What ``generate`` takes for one row of ids, with the image of the first example."""
    given: dict[str, Any] = {
        name: value if isinstance(value, Tensor) else torch.tensor(value)
        for name, value in whole.arguments.given.items()
        if value is not None and name != "position_ids"
    }
    for name in given:
        if whole.axes.get(name, {}).get(0) == "batch":
            given[name] = given[name][:1]
    image = getattr(model.config, "image_token_id", -1)
    kinds = "mm_token_type_ids" if "position_ids" in whole.inputs else "token_type_ids"
    given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kinds in given or kinds == "mm_token_type_ids":
        given[kinds] = (ids == image).long()
    return given


@pytest.mark.slow
@pytest.mark.parametrize("name", ["idefics3", "internvl", "llava", "llava_next", "qwen2_vl"])
def test_checkpoints_write_behind_an_image(name: str, tmp_path: Path) -> None:
    """By placeholders alone, among marks, in crops, and with positions of three axes."""
    model = made(name)
    whole = crossfuse.huggingface_spec(made(name))
    spec = crossfuse.huggingface_spec(made(name), prefix="placeholders")
    bundle = crossfuse.export(spec, tmp_path / "bundle", quick=True)
    assert "step" in bundle.manifest.stages
    prefix = spec.inputs["prefix_input_ids"][:1]
    used = set(prefix[0].tolist())
    random = np.random.default_rng(4)
    words = [n for n in range(20, 100) if n not in used]
    prompts = [random.choice(words, count).tolist() for count in (1, 6, 3)]
    with runtime.load(bundle.path, "ort-cpu") as session:
        first = {
            n: spec.inputs[n][: 1 if spec.axes.get(n, {}).get(0) == "batch" else None].numpy()
            for n in bundle.manifest.context
        }
        context = session.encode(first)
        for settings in (
            {"max_new_tokens": 8},
            {"max_new_tokens": 8, "num_beams": 3},
            {"max_length": prefix.shape[1] + 10, "repetition_penalty": 1.3},
            {"max_new_tokens": 8, "no_repeat_ngram_size": 2},
        ):
            expected = [
                of_the_library(
                    model,
                    asked(model, whole, torch.cat([prefix, torch.tensor([prompt])], 1)),
                    **settings,
                )
                for prompt in prompts
            ]
            found = runtime.generate(
                session, context, prompts, eos_token_id=2, pad_token_id=0, **settings
            )
            assert [tokens.tolist() for tokens in found.new_tokens] == expected
        context.save(tmp_path / "context")
        again = session.load_context(tmp_path / "context")
        settings = {"max_new_tokens": 4, "repetition_penalty": 1.5}
        one, other = (
            runtime.generate(session, c, prompts[:1], eos_token_id=2, **settings)
            for c in (context, again)
        )
        np.testing.assert_array_equal(one.sequences, other.sequences)


@pytest.mark.slow
def test_questions_that_the_image_sees_have_no_steps(tmp_path: Path) -> None:
    """PaliGemma lets the tokens of a question see each other, those of the image too."""
    said: list[str] = []
    torch.manual_seed(0)
    model, processor = CHECKPOINTS["paligemma"]()
    spec = crossfuse.huggingface_spec(model.eval(), processor=processor, prefix="placeholders")
    bundle = crossfuse.export(spec, tmp_path / "bundle", quick=True, step=said.append)
    assert list(bundle.manifest.stages) == ["context", "query"]
    assert "its rows of the context may see what follows them" in " ".join(
        one for one in said if one.startswith("no stage for steps")
    )


ALONE = {"suppress_tokens": [0, 1, 3, 4, *range(20, 64)], "min_new_tokens": 3}
"""Of random weights: words that the tokenizer has, and the end."""
WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"):
    sys.modules[name] = None
from crossfuse.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(3)
    model, processor = CHECKPOINTS["llava"]()
    for parameter in model.parameters():
        parameter.data *= 4
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    command = ["export", f"hf:{folder / 'checkpoint'}", "-o", str(folder / "bundle"), "--quick"]
    done = CliRunner().invoke(app, [*command, "--prefix", "placeholders"])
    assert done.exit_code == 0, done.output
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    model = type(model).from_pretrained(folder / "checkpoint").eval()
    return model, processor, folder


def command(folder: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, "generate", str(folder / "bundle"), *options],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", ["what is in this picture ?", "a : <image> describe the cat"])
def test_what_is_asked_is_answered_as_the_library_does(
    text: str, llava: tuple[Any, Any, Path]
) -> None:
    model, processor, folder = llava
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt = text if "<image>" in text else processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )  # fmt: skip
    image = Image.open(folder / "image.png")
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    options = ["--image", str(folder / "image.png"), "--text", text, "--max-new-tokens=8"]
    options += [f"--set={name}={value}" for name, value in ALONE.items()]
    for more, settings in (
        ([], {}),
        (["--beams=2"], {"num_beams": 2}),
        (["--set=repetition_penalty=1.4"], {"repetition_penalty": 1.4}),
    ):
        with torch.no_grad():
            found = model.generate(**inputs, do_sample=False, max_new_tokens=8, **ALONE, **settings)
        new = found[0, inputs["input_ids"].shape[1] :]
        expected = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert len(expected.split()) > 2, "random weights say something"
        done = command(folder, [*options, *more])
        assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr
        told = command(folder, [*options, *more, "--json"])
        assert json.loads(told.stdout)["text"] == expected


@pytest.mark.slow
def test_other_prompts_are_refused(llava: tuple[Any, Any, Path]) -> None:
    _, _, folder = llava
    image = ["--image", str(folder / "image.png")]
    for options, why in (
        (image, "Give --text"),
        ([*image, "--text", "a photo of this small cat is <image> red"], "places elsewhere"),
        ([*image, "--text", "<image> and <image>"], "places for several images"),
        (["--text", "what is this ?"], "Give --image"),
    ):
        done = command(folder, options)
        assert done.returncode == 2
        assert why in " ".join(done.stderr.split())
    with runtime.load(folder / "bundle") as session:
        processor = runtime.load_processor(folder / "bundle")
        made = runtime.asked(session, processor, text="a cat", image=folder / "image.png")
        wrong = made.inputs | {"prefix_input_ids": np.full_like(made.inputs["prefix_input_ids"], 9)}
        with pytest.raises(InputError, match="the placeholder 4 another number of times"):
            session.encode(wrong)
