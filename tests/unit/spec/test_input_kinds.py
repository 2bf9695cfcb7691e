"""What kind an input is, told by its examples."""

from __future__ import annotations

import math

import pytest
import torch

from crossfuse.spec.input_kinds import Kind, kinds_of

LOW = torch.finfo(torch.float32).min


def kind(tensor: torch.Tensor, name: str = "x", axes: dict[int, str] | None = None) -> Kind:
    return kinds_of([{name: tensor}], {name: axes or {}})[name]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (torch.tensor([[True, False]]), "mask"),
        (torch.tensor([[1, 0], [1, 1]]), "mask"),
        (torch.tensor([[1.0, 0.0]]), "mask"),
        (torch.tensor([[0.0, -math.inf]]), "additive"),
        (torch.tensor([[0.0, LOW]]), "additive"),
        (torch.tensor([[0.0, -10000.0]]), "additive"),
        (torch.tensor([[0.3, -0.2, LOW]]), "additive"),
        (torch.tensor([[0.0, -20.0]]), "features"),
        (torch.tensor([[0.3, -60.0]]), "features"),
        (torch.tensor([[0.5, 1.0]]), "features"),
        (torch.tensor([[5, 2, 9]]), "ids"),
        (torch.tensor([[5, -100, 9]]), "ids"),
        (torch.zeros(0, 3), "features"),
        (torch.zeros(0, 3, dtype=torch.int64), "ids"),
    ],
)
def test_kinds(values: torch.Tensor, name: str) -> None:
    assert kind(values).name == name


def test_nothing_but_ones_may_be_a_mask() -> None:
    ones = torch.ones(2, 3)
    assert kind(ones).name == "features"
    assert kind(ones, "attention_mask").name == "mask"
    assert kind(ones, axes={1: "length"}).name == "mask"


def test_which_value_shows() -> None:
    assert kind(torch.tensor([[1, 1, 0], [1, 0, 0]])).shown == 1
    assert kind(torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0]])).shown == 0
    assert kind(torch.tensor([[True, True], [True, False]])).shown == 1


def test_ranges_and_what_is_ignored() -> None:
    assert kind(torch.tensor([[5, 2, 9]])) == Kind("ids", low=2, high=9)
    assert kind(torch.tensor([[5, -100, 9]])) == Kind("ids", low=5, high=9, ignored=-100)


def test_moments_are_of_what_is_seen() -> None:
    made = kind(torch.tensor([[1.0, 3.0, 5.0, math.inf]]))
    assert (made.mean, made.deviation) == pytest.approx((3.0, 2.0))
    assert kind(torch.full((2, 2), 4.0)).deviation == 1.0
    bias = kind(torch.tensor([[0.25, 0.75, LOW]]))
    assert bias.mean == pytest.approx(0.5)
    assert bias.hiding == (LOW,)


def test_lengths_and_padding_are_told_by_the_other_inputs() -> None:
    ids = torch.tensor([[5, 6, 0], [7, 0, 0]])
    inputs = {
        "ids": ids,
        "mask": (ids != 0).long(),
        "lengths": torch.tensor([2, 3]),
        "labels": torch.tensor([4, 2]),
    }
    axes = {
        "ids": {0: "batch", 1: "text"},
        "mask": {0: "batch", 1: "text"},
        "lengths": {0: "batch"},
    }
    found = kinds_of([inputs], axes)
    assert found["ids"].padding == 0
    assert (found["lengths"].name, found["lengths"].dim) == ("lengths", "text")
    assert found["labels"].name == "ids"
    further = inputs | {"ids": torch.tensor([[5, 6, 9], [7, 0, 0]])}
    assert kinds_of([inputs, further], axes)["ids"].padding is None
