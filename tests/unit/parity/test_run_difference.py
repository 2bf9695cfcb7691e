"""How far two runs come apart, and when rounding alone explains it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from crossfuse.parity.run_difference import difference

ONES = torch.ones(100)


def of(first: Tensor, second: Tensor):
    return difference({"y": first}, {"y": second})


def test_equal_results_do_not_differ() -> None:
    found = of(torch.tensor([1.0, torch.nan, torch.inf]), torch.tensor([1.0, torch.nan, torch.inf]))
    assert (found.largest, found.last_bits, found.rounding) == (0.0, True, True)
    assert difference({}, {}).rounding


@pytest.mark.parametrize(
    ("dtype", "size", "rounding", "last_bits"),
    [
        (torch.float32, 1e-6, True, True),
        (torch.float32, 1e-4, False, True),
        (torch.float32, 1e-2, False, False),
        (torch.float64, 1e-15, True, True),
        (torch.float64, 1e-6, False, False),
        (torch.float16, 1e-2, True, True),
        (torch.float16, 0.2, False, False),
    ],
)
def test_floats_are_judged_by_their_type(
    dtype: torch.dtype, size: float, rounding: bool, last_bits: bool
) -> None:
    """Relative to the largest magnitude, so a small element may move by as much."""
    scale = 8.0
    first = (ONES * scale).to(dtype)
    second = first.clone()
    second[0] += scale * size
    found = of(first, second)
    assert found.largest == pytest.approx(size, rel=0.3)
    assert (found.rounding, found.last_bits) == (rounding, last_bits)


def test_integers_are_judged_by_how_many_differ() -> None:
    few = ONES.long().repeat(10)
    many = few.clone()
    few_changed = few.clone()
    few_changed[:5] = 7
    many[:50] = 7
    assert of(few, few_changed).last_bits
    assert not of(few, few_changed).rounding
    assert (of(few, many).largest, of(few, many).last_bits) == (0.05, False)


@pytest.mark.parametrize(
    "second", [torch.ones(99), torch.ones(100, 1), torch.full((100,), torch.nan)]
)
def test_shapes_and_what_is_finite_are_never_rounding(second: Tensor) -> None:
    found = of(ONES, second)
    assert found.largest == math.inf
    assert not found.rounding
    assert found.sentence() == "y differs in its shape, or in what is finite"


def test_the_worst_output_is_told() -> None:
    first = {"a": ONES, "b": ONES, "c": ONES}
    second = {"a": ONES, "b": ONES + 0.5, "c": ONES + 0.1}
    found = difference(first, second)
    assert found.output == "b"
    assert found.sentence() == "b differs by 0.5"
    assert difference({"a": ONES}, {}).largest == math.inf, "an output that is gone"
