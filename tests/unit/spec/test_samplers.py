"""A sampler whose dimensions got other names, ranges or none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from crossfuse import Dim, InputError, ModelSpec
from crossfuse.spec.samplers import sampler_for


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum(1) + y.sum(1)


def sampler(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Numbers that no imitation makes, so that one tells who was asked."""
    del generator
    return {
        "x": torch.full((sizes["batch"], sizes["left"], 3), 7.0),
        "y": torch.full((sizes["batch"], sizes["right"], 3), 8.0),
    }


def spec() -> ModelSpec:
    return ModelSpec.from_sampler(
        Sum(),
        sampler,
        dynamic={"x": {0: "batch", 1: "left"}, "y": {0: "batch", 1: "right"}},
        example={"batch": 2, "left": 4, "right": 5},
    )


def test_other_names_and_ranges() -> None:
    changed = spec().with_dynamic(
        {"x": {0: "n:1:9", 1: Dim("left", 1, 8)}, "y": {0: "n", 1: "keys"}}
    )
    made = changed.sample({"n": 3, "left": 2, "keys": 6}, seed=1)
    assert made["x"].shape == (3, 2, 3)
    assert made["y"].shape == (3, 6, 3)
    assert bool((made["x"] == 7).all())
    assert bool((made["y"] == 8).all())


def test_axes_that_are_no_longer_dynamic_keep_their_size() -> None:
    changed = spec().with_dynamic({"x": {1: "left"}})
    made = changed.sample({"left": 9}, seed=1)
    assert made["x"].shape == (2, 9, 3)
    assert made["y"].shape == (2, 5, 3)
    assert bool((made["x"] == 7).all())


def test_the_same_names_are_the_same_sampler() -> None:
    own = spec()
    assert sampler_for(own, own.dynamic) is sampler
    assert own.with_dynamic({"x": {0: "batch:1:4"}, "y": {0: "batch"}}).sampler is not None
    assert sampler_for(replace(own, sampler=None), own.dynamic) is None


@pytest.mark.parametrize(
    "dynamic",
    [
        {"x": {0: "batch", 1: "left", 2: "width"}, "y": {0: "batch", 1: "right"}},
        {"x": {0: "one"}, "y": {0: "two"}},
        {"x": {0: "batch"}},
    ],
    ids=["a fixed axis", "one dimension apart", "one dimension fixed in one place"],
)
def test_what_a_sampler_cannot_give_is_imitated(dynamic: dict[str, dict[int, str]]) -> None:
    changed = spec().with_dynamic(dynamic)
    assert changed.sampler is None
    made = changed.sample(changed.example_sizes, seed=1)
    assert made["x"].shape == spec().inputs["x"].shape
    assert not bool((made["x"] == 7).all())


def test_wrong_axes_are_said_of_the_axes() -> None:
    with pytest.raises(InputError, match="dynamic axis doesn't exist"):
        spec().with_dynamic({"x": {5: "n"}})
    with pytest.raises(InputError, match="dynamic names an input"):
        spec().with_dynamic({"z": {0: "n"}})
    with pytest.raises(InputError, match="'n' has two sizes"):
        spec().with_dynamic({"x": {1: "n"}, "y": {1: "n"}})


def test_multiples_are_asked_for_as_the_sampler_knows_them() -> None:
    own = ModelSpec.from_sampler(
        Sum(),
        lambda sizes, _: {
            "x": torch.full((2, 4 * sizes["n"]), 7.0),
            "y": torch.full((2, sizes["n"]), 8.0),
        },
        dynamic={"x": {1: "4*n"}, "y": {1: "n"}},
        example={"n": 3},
    )
    renamed = own.with_dynamic({"x": {1: "4*m:1:9"}, "y": {1: "m"}})
    made = renamed.sample({"m": 5}, seed=0)
    assert (made["x"].shape, made["y"].shape) == ((2, 20), (2, 5))
    assert bool((made["x"] == 7).all())
    # Another multiple is another axis: the examples are imitated.
    assert own.with_dynamic({"x": {1: "2*m"}}).sampler is None
    assert own.with_dynamic({"x": {1: "m"}}).sampler is None
