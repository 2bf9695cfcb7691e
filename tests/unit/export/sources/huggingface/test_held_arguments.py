"""Arguments that an export fixes."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.held_arguments import hold


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        assert factor is not None
        return x * factor


def test_what_is_held_is_given_unless_the_caller_does() -> None:
    model, x = Scaled(), torch.ones(2)
    assert hold(model, {"factor": torch.tensor(3.0)}) is model
    assert model(x).tolist() == model(x=x).tolist() == [3.0, 3.0]
    assert model(x, factor=torch.tensor(2.0)).tolist() == [2.0, 2.0]
    assert list(inspect.signature(model.forward).parameters) == ["x", "factor"]
    assert copy.deepcopy(model)(x).tolist() == [3.0, 3.0]


def test_held_again_the_new_ones_stand_and_nothing_is_left_of_the_old() -> None:
    model, x = Scaled(), torch.ones(1)
    hold(model, {"factor": torch.tensor(3.0)})
    hold(model, {"factor": torch.tensor(5.0)})
    assert model(x).item() == 5.0
    hold(model, {})
    assert model(x, torch.tensor(7.0)).item() == 7.0
    assert model.forward.__func__ is Scaled.forward
