"""What models say to planned inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.input_fillers import normal
from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.trial import draws, narrow, refusal_of, refused


class Picky(nn.Module):
    """Takes an even width from 6 on, as many rows as it likes, and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: Tensor, factor: Any = None, bbox: Any = None) -> Tensor:
        self.seen += 1
        if factor is None:
            raise ValueError("You have to specify bbox and factor")
        if x.shape[1] < 6:
            raise ValueError("too short")
        if x.shape[2] % 2:
            raise ValueError("not even")
        return x * factor


def planned() -> InputPlan:
    plan = InputPlan()
    for name, example in (("batch", 2), ("length", 9), ("width", 4)):
        plan.dim(name, example)
    plan.add("x", ("batch", "length", "width"), normal)
    return plan


def test_what_is_held_is_given_and_state_is_put_back() -> None:
    model, plan = Picky(), planned()
    plan.held["factor"] = [2]
    assert refusal_of(model, plan) is None
    assert model.seen == 0
    refusal = refusal_of(model, plan, plan.example | {"length": 3})
    assert refusal is not None
    assert refusal.message == "ValueError: too short"


def test_a_refusal_is_the_model_s_own_and_names_what_to_give() -> None:
    model, plan = Picky(), planned()
    refusal = refusal_of(model, plan)
    assert refusal is not None
    assert refusal.names({"factor", "bbox", "mask"}) == ["bbox", "factor"]
    text = str(refused(model, refusal, {"factor", "bbox", "mask"}))
    for part in (
        "the model itself refuses",
        "ValueError: You have to specify bbox and factor",
        "(Picky)",
        "x float32 [2, 9, 4]",
        "above all 'bbox', 'factor'",
    ):
        assert part in text


def test_dimensions_are_narrowed_to_what_the_model_takes() -> None:
    plan = planned()
    plan.held["factor"] = [1]
    narrow(Picky(), plan)
    assert plan.shapes["x"] == ("batch", "length", 4)
    assert (plan.dims["batch"].min, plan.fixed) == (1, {"width": 4})
    least = plan.dims["length"].min
    assert 6 <= least < 9
    assert refusal_of(Picky(), plan, plan.example | {"length": least}) is None


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_model_that_draws_is_told_by_two_runs(chance: float) -> None:
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"y": x, "z": [x + chance * torch.rand(x.shape)]}

    assert draws(Draws(), planned()) is bool(chance)


def test_a_plan_s_own_fault_is_a_refusal_too() -> None:
    plan = planned()

    def broken(shape: Any, generator: Any, made: Any) -> Tensor:
        raise KeyError("rows")

    plan.add("y", ("batch",), broken)
    refusal = refusal_of(Picky(), plan)
    assert refusal is not None
    assert refusal.message.startswith("KeyError")


@pytest.mark.parametrize("length", [1, 7])
def test_fixed_dimensions_stay_in_later_shapes(length: int) -> None:
    plan = planned()
    plan.fix("length", length)
    plan.add("y", ("batch", "length"), normal)
    plan.dim("length", 3)
    assert (plan.shapes["x"][1], plan.shapes["y"]) == (length, ("batch", length))
    assert "length" not in plan.dims
    made = plan.sample(plan.example, torch.Generator())
    assert made["y"].shape == (2, length)
