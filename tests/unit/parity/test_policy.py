"""The policy's numbers: what an error may be, what is believed, and which points are judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crossfuse.parity.policy import (
    BELIEVED,
    EAGER_MULTIPLE,
    FLOORS,
    Tolerance,
    believed_error,
    judged_as,
    judged_points,
    magnitude,
    output_error,
    tolerances,
)
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import EXAMPLE, MADE, TAILS


def point(
    truth: np.ndarray,
    eager: float = 0.0,
    half: dict[str, dict[str, float]] | None = None,
    kind: str = MADE,
) -> ReferencePoint:
    return ReferencePoint({"n": 1}, 0, {}, {"y": truth}, {"y": eager}, half or {}, kind)


def allowed(points: list[ReferencePoint], judged: str = "fp32") -> list[Tolerance]:
    return tolerances(points, "y", ReferenceSet("float64", tuple(points)), judged)


ONES = np.ones(4)


@pytest.mark.parametrize("precision", list(FLOORS))
def test_the_floor_stands_where_eager_is_exact(precision: str) -> None:
    half = {p: {"y": 0.0} for p in ("fp16", "bf16")}
    (small,) = allowed([point(0.01 * ONES, half=half)], precision)
    (large,) = allowed([point(100 * ONES, half=half)], precision)
    assert small.allowed == pytest.approx(0.01 * FLOORS[precision])
    assert large.allowed == FLOORS[precision], "the floor does not grow with the output"
    assert large.cause == f"floor of {precision}"


def test_eagers_worst_error_over_all_points_is_allowed_a_few_times() -> None:
    found = allowed([point(ONES, 1e-4), point(ONES, 3e-4)])
    assert [one.allowed for one in found] == [EAGER_MULTIPLE * 3e-4] * 2
    assert found[0].cause == "4 × eager fp32 error"


def test_an_error_is_believed_up_to_a_share_of_the_output() -> None:
    (found,) = allowed([point(10 * ONES, eager=1.0)])
    assert found.allowed == pytest.approx(EAGER_MULTIPLE * BELIEVED["fp32"] * 10)
    assert "as far as believed" in found.cause
    assert believed_error(np.zeros(200, np.int64), "fp32") == 0.05
    assert believed_error(np.zeros(4, np.int64), "fp32") == 0.25, "one element of four"


def test_tails_have_a_floor_and_an_error_of_their_own() -> None:
    plain, tail = point(ONES, 1e-4), point(100 * ONES, 5e-3, kind=TAILS)
    first, second = allowed([plain, tail])
    assert first.allowed == EAGER_MULTIPLE * 1e-4, "a tail's error loosens no other point"
    assert second.allowed == EAGER_MULTIPLE * 5e-3
    assert allowed([plain, point(100 * ONES, kind=TAILS)])[1].allowed == FLOORS["fp32"] * 100


def test_points_where_eager_in_half_precision_is_no_measure_are_left_out() -> None:
    fine, gone = {"fp16": {"y": 1e-3}}, {"fp16": {}}
    wild = {"fp16": {"y": 10.0}}
    tail = point(ONES, half=gone, kind=TAILS)
    assert judged_points([point(ONES, half=fine), tail], "y", "fp16") == [0]
    assert judged_points([point(ONES, half=fine), tail], "y", "fp32") == [0, 1]
    one = [point(ONES, half=fine), point(ONES, half=wild)]
    assert judged_points(one, "y", "fp16") == [0]
    two = [*one, point(ONES, half=wild)]
    assert judged_points(two, "y", "fp16") == [0, 1, 2], "a reference can't excuse more than one"
    example = [point(ONES, half=fine), point(ONES, half=wild, kind=EXAMPLE)]
    assert judged_points(example, "y", "fp16") == [0, 1], "the user's own example is judged"


@pytest.mark.parametrize(
    ("got", "truth", "error"),
    [
        (np.array([1.0, 2.5]), np.array([1.0, 2.0]), 0.5),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), math.inf),
        (np.ones((2, 1)), np.ones(2), math.inf),
        (np.ones(0), np.ones(0), 0.0),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.array([True, False]), np.array([True, True]), 0.5),
        (np.float32([3e38]), np.float64([-3e38]), 6e38),
    ],
)
def test_errors(got: np.ndarray, truth: np.ndarray, error: float) -> None:
    assert output_error(got, truth) == pytest.approx(error, rel=1e-6)


def test_shares() -> None:
    assert Tolerance(0.0, "").share(0.0) == 0.0
    assert Tolerance(0.0, "").share(1e-30) == math.inf
    assert Tolerance(2.0, "").share(3.0) == 1.5


def test_magnitudes_are_never_zero() -> None:
    assert magnitude(np.array([-3.0, 2.0])) == 3.0
    assert magnitude(np.zeros(3)) > 0
    assert magnitude(np.array([7, 9])) == 1.0
    assert magnitude(np.zeros((0, 3))) == 1.0


def test_mixed_is_judged_as_fp16() -> None:
    assert [judged_as(p) for p in ("mixed", "fp16", "bf16", "fp32")] == [
        "fp16",
        "fp16",
        "bf16",
        "fp32",
    ]
