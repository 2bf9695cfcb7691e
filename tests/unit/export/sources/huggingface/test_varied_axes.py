"""What a changed sample moves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.asked import ask
from crossfuse.export.sources.huggingface.load import load_model
from crossfuse.export.sources.huggingface.processor import load_processor
from crossfuse.export.sources.huggingface.sample_inputs import Given
from crossfuse.export.sources.huggingface.varied_axes import (
    ROWS,
    TEXTS,
    Moved,
    axes_among,
    fits,
    moved_by,
    vary,
)
from processor_checkpoints import save_checkpoint
from vlm_checkpoints import save_vlm


def inputs(rows: int, text: int, patches: int = 4) -> dict[str, Tensor]:
    return {
        "ids": torch.ones(rows, text, dtype=torch.long),
        "mask": torch.ones(rows, text),
        "patches": torch.ones(patches, 6),
    }


def test_one_size_moves_or_several_do() -> None:
    base = inputs(2, 5)
    assert moved_by(base, base) is None
    assert moved_by(base, inputs(2, 7)) == Moved({"ids": (1,), "mask": (1,)}, 5, 7)
    assert "several sizes" in str(moved_by(base, inputs(3, 5, 6)))
    assert "other inputs" in str(moved_by(base, {"ids": base["ids"]}))
    flat = {**base, "mask": base["mask"].reshape(-1)}
    assert "other axes" in str(moved_by(base, flat))


def test_axes_that_differ_among_examples() -> None:
    assert axes_among([inputs(2, 5), inputs(3, 7), inputs(3, 5)]) == {
        "ids": {0: "batch", 1: "ids_1"},
        "mask": {0: "batch", 1: "ids_1"},
    }
    assert axes_among([inputs(2, 5)]) == {}


def test_whether_inputs_fit() -> None:
    base, text = inputs(2, 5), Dim("text", 2, 6)
    axes = {"ids": {1: text}, "mask": {1: text}}
    assert fits(inputs(2, 6), base, axes)
    assert not fits(inputs(2, 7), base, axes)
    assert not fits(inputs(3, 5), base, axes)
    assert not fits({**base, "mask": torch.ones(2, 6)}, base, axes)
    assert not fits({**base, "mask": base["mask"].double()}, base, axes)
    assert not fits({"ids": base["ids"]}, base, axes)


def test_rows_that_say_how_large_their_images_are_stay_one(tmp_path: Path) -> None:
    folder = save_vlm("llava_next", tmp_path)
    model = load_model(str(folder)).module
    varied = vary(ask(model, load_processor(folder), Given()))
    assert ROWS not in varied.moved
    assert varied.fixed[ROWS].startswith("image_sizes, part of the export, says how large")
    assert varied.base["image_sizes"].tolist() == [[128, 192]]


def test_texts_and_images_of_a_model_of_all_pairs_vary_apart(tmp_path: Path) -> None:
    folder = save_checkpoint("clip", tmp_path)
    model = load_model(str(folder)).module
    varied = vary(ask(model, load_processor(folder), Given()))
    assert set(varied.moved) == {ROWS, TEXTS, "text"}
    assert varied.moved[ROWS].axes == {"pixel_values": (0,)}
    assert varied.moved[TEXTS].axes == {"input_ids": (0,), "attention_mask": (0,)}
    # What is longer than the model's positions is not taken; a little longer is.
    assert varied.moved["text"].way == "text a little"
