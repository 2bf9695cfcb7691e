"""Operators without an ONNX translation are named with the line that calls them."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.capture.to_onnx import program_to_onnx
from crossfuse.export.capture.untranslated import untranslated
from crossfuse.export.fuse import fuse
from crossfuse.spec.model_spec import ModelSpec


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        return torch.special.i0(doubled) + 1


def test_the_operator_and_the_users_line() -> None:
    module, x = Bessel(), torch.rand(2, 3)
    program = torch.export.export(module, (), {"x": x}, strict=False)
    with pytest.raises(InputError) as caught:
        program_to_onnx(program, ModelSpec(module, {"x": x}), ("y",))
    lines, start = inspect.getsourcelines(Bessel)
    (place,) = (start + i for i, line in enumerate(lines) if "special.i0" in line)
    assert "no translation of aten.special_i0 (" in str(caught.value)
    assert f"{__file__}, line {place}: return torch.special.i0(doubled) + 1" in str(caught.value)


def test_an_export_says_so() -> None:
    """With the shortcuts of tracing and of decompositions, too."""
    x = torch.rand(2, 3)
    with pytest.raises(
        InputError, match=r"of aten.special_i0 \(.*: return torch.special.i0\(doubled"
    ):
        fuse(ModelSpec(Bessel(), {"x": x}, {"x": {0: "n:1:8"}}))


def test_an_error_about_no_operator() -> None:
    assert untranslated(ValueError("something else")) is None
