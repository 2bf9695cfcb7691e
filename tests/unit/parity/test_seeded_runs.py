"""Runs under chosen seeds: watched, and without a trace afterwards."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossfuse.parity.draws import HIGH, LOW
from crossfuse.parity.seeded_runs import (
    FIRST,
    SECOND,
    changed_buffers,
    copied_buffers,
    extreme_seeds,
    kept_as_it_was,
    run_seeded,
)
from crossfuse.spec.model_spec import ModelSpec


class Busy(nn.Module):
    """Draws from all global generators, counts its calls, and writes into its input."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.inner = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        drawn = random.random() + float(np.random.random()) + torch.rand(1)
        return self.inner(x.mul_(2)) + drawn


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(Busy().eval(), {"x": torch.ones(2, 3)})


def test_a_seed_makes_a_run_the_same_again(spec: ModelSpec) -> None:
    with kept_as_it_was(spec.module) as before:
        first, other, again = (run_seeded(spec, before, s) for s in (FIRST, SECOND, FIRST))
    (name,) = first.outputs
    assert torch.equal(first.outputs[name], again.outputs[name])
    assert not torch.equal(first.outputs[name], other.outputs[name])
    assert [draw.operator for draw in first.draws] == ["rand"]
    assert all(used for used, _ in first.others.values())
    assert torch.equal(spec.inputs["x"], torch.ones(2, 3)), "inputs are copied"


def test_nothing_of_it_stays(spec: ModelSpec) -> None:
    states = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())
    with kept_as_it_was(spec.module) as before:
        middle = copied_buffers(spec.module)
        run_seeded(spec, before, SECOND)
        assert changed_buffers(spec.module, middle) == ["count"]
    assert float(spec.module.count) == 0
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_buffers_that_a_module_replaces_come_back(spec: ModelSpec) -> None:
    own = spec.module.count

    def replaced() -> None:
        with kept_as_it_was(spec.module):
            spec.module.count = torch.full((5,), 9.0)
            raise KeyError("what the user's code raises")

    with pytest.raises(KeyError):
        replaced()
    assert spec.module.count is own
    assert float(own) == 0


@pytest.mark.parametrize("end", [LOW, HIGH])
def test_extreme_seeds_draw_at_an_end(end: str) -> None:
    seeds = extreme_seeds(end)
    drawn = [
        random.Random(seeds.python).random(),
        float(np.random.RandomState(seeds.numpy).random_sample()),
    ]
    assert all(value < 0.01 if end == LOW else value > 0.99 for value in drawn)
