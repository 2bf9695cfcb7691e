"""Contexts: which of their tensors a selection takes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context, frozen, require_own

KEYS = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
TABLE = np.arange(4, dtype=np.float32)


def context(
    batch: str | None = "contexts", **tensors: tuple[np.ndarray, tuple[int | str, ...]]
) -> Context:
    if not tensors:
        tensors = {"keys": (KEYS, ("contexts", 4, 2)), "table": (TABLE, (4,))}
    return Context(
        {name: frozen(array.copy()) for name, (array, _) in tensors.items()},
        tuple(TensorSpec(name, "float32", shape) for name, (_, shape) in tensors.items()),
        3,
        batch,
        "bundle",
        {"keys": 4},
    )


@pytest.mark.parametrize("chosen", [[0], [2, 0], [1, 1, 1], [-1], np.array([2, 1])])
def test_a_selection_is_taken_along_the_batch_alone(chosen: list[int]) -> None:
    found = context().select(chosen)
    np.testing.assert_array_equal(found.tensors["keys"], KEYS[np.asarray(chosen)])
    np.testing.assert_array_equal(found.tensors["table"], TABLE)
    assert (found.count, len(found)) == (len(chosen), len(chosen))
    assert found.sizes == {"contexts": len(chosen), "keys": 4}
    assert not found.tensors["keys"].flags.writeable


def test_the_batch_may_be_another_axis_than_the_first() -> None:
    array = np.moveaxis(KEYS, 0, 1)
    found = context(keys=(array, (4, "contexts", 2))).select([2])
    np.testing.assert_array_equal(found.tensors["keys"], array[:, [2]])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [([], "out of range"), ([3], "out of range.*0 to 2"), ([-4], "out of range"), ([0.5], "whole")],
)
def test_positions_that_are_none(chosen: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        context().select(chosen)


def test_contexts_without_a_batch_are_not_selected_from() -> None:
    with pytest.raises(InputError, match="no batch"):
        context(None).select([0])


def test_a_batch_inside_an_expression_is_refused_and_a_name_that_begins_alike_is_not() -> None:
    blocks = (np.zeros((5, 2), np.float32), ("blocks", 2))
    kept = context("b", blocks=blocks, keys=(KEYS, ("b", 4, 2))).select([1])
    assert kept.tensors["blocks"].shape == (5, 2)
    with pytest.raises(InputError, match="no axis of its own.*flat"):
        context("b", flat=(KEYS.reshape(12, 2), ("4*b", 2))).select([1])


def test_bytes_are_those_of_all_tensors() -> None:
    assert context().nbytes == KEYS.nbytes + TABLE.nbytes


def test_only_its_own_bundle_takes_a_context() -> None:
    require_own(context(), "bundle")
    with pytest.raises(InputError, match="another bundle"):
        require_own(context(), "other")
    with pytest.raises(InputError, match="needs an encoded context: got dict"):
        require_own({}, "bundle")  # type: ignore[arg-type]
