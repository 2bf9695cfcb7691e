"""Positions that a model makes of its ids become an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.input_fillers import classes
from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.rope_positions import put_positions


class Rows(nn.Module):
    """Counts positions per row in a loop, on two axes."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def get_rope_index(self, input_ids: Tensor, mm_token_type_ids: Tensor, grid: Tensor) -> Any:
        if self.fails:
            raise ValueError("no")
        step = int(grid.prod())
        rows = [
            torch.arange(len(row)) * step + mm_token_type_ids[i] for i, row in enumerate(input_ids)
        ]
        return torch.stack([torch.stack(rows)] * 2), None

    def forward(
        self, input_ids: Tensor, mm_token_type_ids: Any = None, position_ids: Any = None,
        grid: Any = None,
    ) -> Tensor:  # fmt: skip
        if position_ids is None:
            position_ids = self.get_rope_index(input_ids, mm_token_type_ids, grid)[0]
        return position_ids.sum(0) + input_ids


TAKES = {"input_ids", "mm_token_type_ids", "position_ids", "grid"}


def planned() -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    plan.dim("text", 5)
    plan.add("input_ids", ("batch", "text"), classes(0, 9))
    plan.add("mm_token_type_ids", ("batch", "text"), classes(0, 2))
    plan.held["grid"] = [[1, 3]]
    return plan


def test_positions_stand_for_what_they_are_made_of() -> None:
    model, plan = Rows(), planned()
    changed = put_positions(model, plan, TAKES)
    assert changed.shapes == {"input_ids": ("batch", "text"), "position_ids": (2, "batch", "text")}
    assert changed.settled == {"position_ids": ()}
    for sizes in ({"batch": 2, "text": 5}, {"batch": 3, "text": 7}):
        made = changed.sample(sizes, torch.Generator().manual_seed(0))
        assert made["position_ids"].shape == (2, sizes["batch"], sizes["text"])
        steps = made["position_ids"][0, 0] - 3 * torch.arange(sizes["text"])
        assert set(steps.tolist()) <= {0, 1}


def test_a_model_without_them_or_that_fails_keeps_its_plan() -> None:
    plan = planned()
    assert put_positions(nn.Identity(), plan, TAKES) is plan
    assert put_positions(Rows(), plan, TAKES - {"position_ids"}) is plan
    assert put_positions(Rows(fails=True), plan, TAKES) is plan
