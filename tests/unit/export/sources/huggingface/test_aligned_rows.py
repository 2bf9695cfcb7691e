"""Padding in front of rows goes behind them."""

from __future__ import annotations

import torch

from crossfuse.export.sources.huggingface.aligned_rows import aligned

IDS = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4], [9, 0, 0, 0], [0, 0, 0, 0]])
AXES = {"input_ids": 1, "attention_mask": 1, "position_ids": 2}


def inputs() -> dict[str, torch.Tensor]:
    places = torch.stack([IDS * 10, IDS * 100])
    mask = (IDS != 0).long()
    return {"input_ids": IDS, "attention_mask": mask, "position_ids": places, "pixels": IDS}


def test_rows_begin_with_a_token() -> None:
    found = aligned(inputs(), AXES)
    rows = [[5, 6, 7, 8], [3, 4, 0, 0], [9, 0, 0, 0], [0, 0, 0, 0]]
    assert found["input_ids"].tolist() == rows
    assert found["attention_mask"].tolist() == [[int(n > 0) for n in row] for row in rows]
    assert found["position_ids"].tolist() == [[[n * k for n in r] for r in rows] for k in (10, 100)]
    assert found["pixels"] is IDS


def test_what_is_not_told_stays() -> None:
    given = inputs()
    assert aligned({"input_ids": IDS}, AXES)["input_ids"] is IDS
    other = {**given, "position_ids": IDS[:1]}
    assert aligned(other, {**AXES, "position_ids": 1})["input_ids"] is IDS
    assert aligned(given, {"input_ids": 1})["input_ids"] is IDS
