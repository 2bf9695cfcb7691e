"""Limits of numbers while a copy runs in float64: the model's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from crossfuse.parity.dtype_limits import limits_of
from crossfuse.parity.eager_module import EagerModule
from crossfuse.spec.model_spec import ModelSpec

SINGLE = nn.Linear(2, 2)


def test_limits_are_float32s_for_a_while() -> None:
    before = torch.finfo
    with limits_of(SINGLE, []):
        assert torch.finfo(torch.float64).min == torch.finfo(torch.float32).min
        assert torch.finfo(torch.float16).max == 65504
        assert torch.finfo().eps == before(torch.float32).eps
    assert torch.finfo is before


def test_a_model_in_float64_has_its_own() -> None:
    for module, inputs in ((nn.Linear(2, 2).double(), []), (SINGLE, [torch.zeros(1).double()])):
        with limits_of(module, inputs):
            assert torch.finfo(torch.float64).max > 1e308


class Masked(nn.Module):
    """A mask in float32, whatever the module's dtype is."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        low = (1 - mask.float()) * torch.finfo(x.dtype).min
        return (x + low).softmax(-1)


def test_a_mask_of_the_lowest_number_is_defined_in_float64() -> None:
    inputs = {"x": torch.randn(2, 5), "mask": torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])}
    eager = EagerModule(ModelSpec(Masked(), inputs), inputs)
    truth = eager.run(inputs).truth["output"]
    assert (eager.dtype, truth.dtype) == ("float64", np.float64)
    kept = inputs["x"].double().masked_fill(inputs["mask"] == 0, -torch.inf)
    np.testing.assert_allclose(truth, kept.softmax(-1).numpy(), rtol=0, atol=1e-15)
