"""Found dimensions that a trace refuses: narrower, fixed, and one row of a fixed batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse import ModelSpec
from crossfuse.core.tensors import Dim
from crossfuse.export.capture.guards import NotFreeError
from crossfuse.export.fuse import fuse
from crossfuse.export.sources.huggingface.refit import refitted
from crossfuse.spec.input_origin import FIXED


class ByRow(nn.Module):
    """Goes through a batch row by row, and has a table of six places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 6:
            raise ValueError("too long")
        return torch.stack([row.cumsum(0) + self.table[: x.shape[1]] for row in x])


def spec() -> ModelSpec:
    dynamic = {"x": {0: Dim("batch", 1, 8), 1: Dim("text", 1, 32)}}
    examples = [{"x": torch.randn(3, 6, 4)}, {"x": torch.randn(1, 5, 4)}]
    return ModelSpec(ByRow(), {"x": torch.randn(2, 5, 4)}, dynamic, examples=examples)


def refusal_of(tried: ModelSpec) -> NotFreeError:
    with pytest.raises(NotFreeError) as found:
        fuse(tried)
    return found.value


def test_what_tracing_refuses_is_narrower_or_fixed() -> None:
    made = spec()
    for _ in range(4):
        try:
            graph = fuse(made)
            break
        except NotFreeError as error:
            made = refitted(made, error)
    assert made.dims == {"text": Dim("text", 1, 6)}
    assert made.inputs["x"].shape == (1, 5, 4)
    assert [tuple(e["x"].shape) for e in made.examples] == [(1, 5, 4)]
    assert "batch" in made.about[FIXED]
    assert [value.shape for value in graph.inputs] == [(1, "text", 4)]
    assert made.sample({"text": 3}, 0)["x"].shape == (1, 3, 4)


def test_what_changes_nothing_is_raised_as_it_was() -> None:
    error = refusal_of(spec())
    error.narrower = {}
    with pytest.raises(NotFreeError):
        refitted(spec(), error)
