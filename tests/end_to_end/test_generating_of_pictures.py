"""Vision-language models that cut pictures into tiles or patches: the command answers as the
library's processor and ``generate`` do, without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import crossfuse
from crossfuse import InputError, runtime
from crossfuse.cli import app
from crossfuse.export.sources.huggingface.processor import Processor, load_processor
from processor_checkpoints import CHECKPOINTS
from vlm_checkpoints import VLMS, model_of, save_vlm

pytestmark = pytest.mark.slow

WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "polygraphy"):
    sys.modules[name] = None
from crossfuse.cli import main
main(sys.argv[1:])
"""
TEXT = "what is in this picture ?"


@pytest.fixture(scope="module", params=sorted(VLMS))
def known(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Processor, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = save_vlm(request.param, folder / "checkpoint")
    command = ["export", f"hf:{checkpoint}", "-o", str(folder / "bundle"), "--quick"]
    done = CliRunner().invoke(app, [*command, "--prefix", "placeholders"])
    assert done.exit_code == 0, done.output
    processor = load_processor(checkpoint, trust_remote_code=False)
    return model_of(request.param, checkpoint), processor, folder


def saved(folder: Path, mode: str, width: int, height: int) -> Path:
    """A photograph as a file."""
    random = np.random.default_rng(width)
    image = Image.fromarray(random.integers(0, 256, (5, 6, 4), np.uint8), "RGBA")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    path = folder / f"{mode}-{width}-{height}.png"
    image.convert(mode).save(path)
    return path


def command(folder: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, "generate", str(folder / "bundle"), *options],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def prompt_of(processor: Processor) -> str:
    owner = processor.call if getattr(processor.call, "chat_template", None) else processor.words
    content = [{"type": "image"}, {"type": "text", "text": TEXT}]
    prompt: str = owner.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return prompt


@pytest.mark.parametrize(
    ("mode", "width", "height"),
    [("RGB", 192, 128), ("L", 97, 64), ("RGBA", 600, 400), ("P", 48, 32)],
)
def test_answers_are_the_librarys(
    mode: str, width: int, height: int, known: tuple[Any, Processor, Path]
) -> None:
    model, processor, folder = known
    path = saved(folder, mode, width, height)
    inputs = processor.call(
        text=[prompt_of(processor)], images=[Image.open(path)], return_tensors="pt"
    )
    words = range(len(processor.words))
    told = [n for n in words if n not in processor.words.all_special_ids]
    alone = {"suppress_tokens": sorted({*range(128)} - {*told}), "min_new_tokens": 6}
    options = ["--image", str(path), "--text", TEXT, "--max-new-tokens=6"]
    options += [f"--set={name}={value}" for name, value in alone.items()]
    for more, settings in (([], {}), (["--beams=2"], {"num_beams": 2})):
        with torch.no_grad():
            found = model.generate(**inputs, do_sample=False, max_new_tokens=6, **alone, **settings)
        new = found[0, inputs["input_ids"].shape[1] :]
        expected = processor.words.decode(new, skip_special_tokens=True).strip()
        assert len(expected.split()) > 1, "random weights say something"
        done = command(folder, [*options, *more])
        assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr


def test_pictures_of_other_proportions_are_refused(known: tuple[Any, Processor, Path]) -> None:
    _, _, folder = known
    done = command(folder, ["--image", str(saved(folder, "RGB", 40, 160)), "--text", TEXT])
    said = " ".join(done.stderr.split())
    own = runtime.load_processor(folder / "bundle")
    if own.kind.layout(own.pixels, 160, 40) == own.kind.layout(own.pixels, 128, 192):
        assert done.returncode == 0, "one that cuts both alike takes both"
        return
    assert done.returncode == 2
    assert "cut otherwise than the one that the model was exported with" in said
    assert "of 40×160 pixels" in said
    assert "as of 192×128 pixels" in said


@pytest.mark.parametrize("text", ["what is this ?", "<CAPTION>", "<REGION_TO_OCR> small cat"])
def test_tasks_of_a_model_that_reads_all_before_it_writes(text: str, tmp_path: Path) -> None:
    """Florence-2: its encoder reads the places, and its processor writes texts for tasks."""
    torch.manual_seed(3)
    model, processor = CHECKPOINTS["florence2"]()
    for parameter in model.parameters():
        parameter.data *= 4
    spec = crossfuse.huggingface_spec(model.eval(), processor=processor)
    bundle = crossfuse.export(spec, tmp_path / "bundle", quick=True)
    image = Image.open(saved(tmp_path, "RGB", 90, 40))
    inputs = processor(text=text, images=image, return_tensors="pt")
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 1, "do_sample": False}
    with torch.no_grad():
        expected = model.generate(**inputs, **settings)
    with runtime.load(bundle.path, "ort-cpu", stages=["context", "step"]) as session:
        known = runtime.load_processor(bundle.path)
        question = runtime.asked(session, known, text=text, image=image)
        np.testing.assert_array_equal(question.inputs["input_ids"], inputs["input_ids"])
        found = runtime.generate(session, session.encode(question.inputs), **settings)
        assert found.sequences.tolist() == expected.tolist()
        with pytest.raises(InputError, match="without more words"):
            runtime.asked(session, known, text="<OD> of a cat", image=image)


def test_a_picture_of_the_users_decides_the_proportions(tmp_path: Path) -> None:
    checkpoint = save_vlm("qwen2_vl", tmp_path / "checkpoint")
    tall = saved(tmp_path, "RGB", 40, 160)
    options = ["--quick", "--prefix", "placeholders", "--image", str(tall)]
    done = CliRunner().invoke(
        app, ["export", f"hf:{checkpoint}", "-o", str(tmp_path / "bundle"), *options]
    )
    assert done.exit_code == 0, done.output
    for picture, code in ((tall, 0), (saved(tmp_path, "RGB", 192, 128), 2)):
        done = command(
            tmp_path, ["--image", str(picture), "--text", TEXT, "--max-new-tokens=3"]
        )  # fmt: skip
        assert done.returncode == code, done.stderr
