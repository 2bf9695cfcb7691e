"""`ModelSpec`: sizes, dropped outputs, samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from crossfuse import Dim, InputError, ModelSpec
from crossfuse.spec.imitation import Draw


class Sum(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x.sum(1) + ids.sum(1, keepdim=True)


def spec(**changes: object) -> ModelSpec:
    inputs = {"x": torch.randn(2, 4), "ids": torch.arange(6).reshape(2, 3)}
    dynamic = {"x": {0: "batch:1:8"}, "ids": {0: "batch", 1: Dim("text", 1, 5)}}
    return ModelSpec(Sum(), inputs, dynamic, **changes)


def test_dimensions_by_name() -> None:
    made = spec()
    assert made.dims == {"batch": Dim("batch", 1, 8), "text": Dim("text", 1, 5)}
    assert made.axes == {"x": {0: "batch"}, "ids": {0: "batch", 1: "text"}}
    assert made.example_sizes == {"batch": 2, "text": 3}


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"x": {2: "n"}}, r"axis doesn't exist \(x\): got 2, expected 0\.\.1"),
        ({"x": {-1: "n"}}, "axis doesn't exist"),
        ({"x": {0: "n", 1: "n"}}, "'n' has two sizes"),
        ({"x": {0: "n:3:8"}}, "outside its range"),
        ({"x": {0: "n:1:4"}, "ids": {0: "n:1:8"}}, "two ranges"),
    ],
)
def test_axes_that_contradict_the_examples(dynamic: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(spec(), dynamic=dynamic)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 4)}, "missing ids"),
        ({"x": torch.ones(3, 4), "ids": torch.ones(3, 3)}, r"wrong dtype.*float32.*int64"),
        (
            {"x": torch.ones(3, 5), "ids": torch.ones(3, 3).long()},
            r"\[3, 5\], expected \[batch, 4\]",
        ),
        ({"x": torch.ones(3, 4), "ids": torch.ones(2, 3).long()}, "two sizes"),
        ({"x": torch.ones(3, 4), "ids": torch.ones(3, 6).long()}, "outside its range"),
    ],
)
def test_other_inputs(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec().sizes_of(change, "here")
    with pytest.raises(InputError, match=message):
        spec(examples=[change])


def test_outputs_that_are_kept() -> None:
    outputs = {"a": 1, "b.0": 2, "b.1": 3}
    assert spec().kept(outputs) == outputs
    assert spec(drop_outputs=("b.*",)).kept(outputs) == {"a": 1}
    assert spec(drop_outputs=("c*",)).kept(outputs) == outputs
    with pytest.raises(InputError, match="output to drop doesn't exist.*got 'c'"):
        spec(drop_outputs=("c",)).kept(outputs)
    with pytest.raises(InputError, match="every output is dropped"):
        spec(drop_outputs=("*",)).kept(outputs)


def test_samples_are_seeded_and_of_the_sizes() -> None:
    sizes = {"batch": 5, "text": 2}
    own = spec()
    one, two, other = (own.sample(sizes, seed) for seed in (1, 1, 2))
    assert one["x"].shape == (5, 4)
    assert one["ids"].shape == (5, 2)
    assert one["x"].equal(two["x"])
    assert not one["x"].equal(other["x"])
    large = own.sample(sizes, 1, Draw(scale=100.0))
    assert torch.allclose(large["x"], one["x"] * 100, rtol=1e-5)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: [1], "gives no tensors by name.*got list"),
        (lambda: {"x": torch.ones(5, 4)}, r"sampler's inputs differ \(ids\): got nothing"),
        (lambda: {"x": torch.ones(1, 4), "ids": torch.ones(5, 2).long()}, r"differ \(x\)"),
        (lambda: {"x": 3, "ids": 3}, "example input can't be used"),
        (lambda: 1 / 0, "the sampler raised ZeroDivisionError"),
    ],
)
def test_samplers_that_err(made: object, message: str) -> None:
    bad = spec(sampler=lambda sizes, generator: made())
    with pytest.raises(InputError, match=message):
        bad.sample({"batch": 5, "text": 2}, 1)
