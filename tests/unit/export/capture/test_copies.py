"""Copies in another dtype: values, ties and what is not floating."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crossfuse.export.capture.copies import copied


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("ids", torch.arange(3))
        self.plain = torch.ones(2)
        self.listed = [torch.ones(2), "text"]
        self.named = {"scale": torch.ones(2)}


def to_double(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64


def test_floats_are_converted_and_nothing_else() -> None:
    module = Tied()
    copy = copied(module, to_double)
    assert copy.first.weight.dtype == torch.float64
    assert copy.ids.dtype == torch.int64
    assert module.first.weight.dtype == torch.float32
    torch.testing.assert_close(copy.first.weight.float(), module.first.weight)


def test_tied_weights_stay_tied_and_parameters_parameters() -> None:
    copy = copied(Tied(), to_double)
    assert copy.first.weight is copy.second.weight
    assert isinstance(copy.first.weight, nn.Parameter)
    assert not copy.first.weight.requires_grad


def test_plain_attributes_are_converted_on_request() -> None:
    as_they_were, converted = (copied(Tied(), to_double, attributes=a) for a in (False, True))
    for copy, dtype in ((as_they_were, torch.float32), (converted, torch.float64)):
        assert {copy.plain.dtype, copy.listed[0].dtype, copy.named["scale"].dtype} == {dtype}
    assert converted.listed[1] == "text"


def test_a_tensor_may_keep_its_dtype() -> None:
    half = Tied().half()
    copy = copied(half, lambda tensor: None)
    assert copy.first.weight.dtype == torch.float16
    assert copy.first.weight is not half.first.weight


def test_what_cannot_be_copied_raises_as_it_does() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("no copies of me")

    with pytest.raises(TypeError, match="no copies of me"):
        copied(Stubborn(), to_double)
