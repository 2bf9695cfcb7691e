"""Sizes of a trace are told apart, those of multiples too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossfuse import Dim, ModelSpec
from crossfuse.export.capture.trace_sizes import limited, trace_sizes, traced_size


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y.sum()


def test_no_two_axes_have_one_size() -> None:
    inputs = {"x": torch.zeros(6, 12), "y": torch.zeros(3, 12)}
    dynamic = {"x": {0: "batch", 1: "4*height"}, "y": {0: "height", 1: "width"}}
    spec = ModelSpec(Sum(), inputs, dynamic)
    sizes = trace_sizes(spec)
    axes = [sizes["batch"], sizes["height"], 4 * sizes["height"], sizes["width"]]
    assert len(set(axes)) == 4
    assert min(trace_sizes(spec, beyond=40).values()) >= 40


def test_multiples_keep_their_factor() -> None:
    dims = {"height": torch.export.Dim("height", min=2, max=9), "fixed": None}
    assert traced_size("height", dims) is dims["height"]
    assert traced_size("8*height", dims).__name__ == "8*height"
    assert traced_size("8*fixed", dims) is None
    limit = {"height": Dim("height", 2, 9)}
    assert limited("8*height:2", limit) == "8*height:2:9"
    assert limited("height", limit) == limit["height"]
    assert limited("4*width", limit) == "4*width"
