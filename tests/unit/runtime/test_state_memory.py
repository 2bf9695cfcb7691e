"""Memory of a decoding state: made once, written in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.core.tensors import TensorSpec
from crossfuse.runtime.state_memory import StateMemory
from unit.runtime.stub_stage import StubStage

INPUTS = (
    TensorSpec("ids", "int64", ("batch", "new_tokens")),
    TensorSpec("position", "int64", ("batch", "new_tokens")),
    TensorSpec("state:k", "float32", ("batch", 5, 2)),
)


def write(feeds: dict[str, Any]) -> list[np.ndarray]:
    state = np.array(feeds["state:k"])
    for row, places in enumerate(feeds["position"]):
        state[row, places] = feeds["ids"][row][:, None]
    return [np.array(feeds["ids"]) + 0.5, state]


def memory(batch: int = 2) -> StateMemory:
    stage = StubStage([spec.name for spec in INPUTS], ["y", "next:k"], write)
    return StateMemory(stage, INPUTS, batch, {})


def feeds(ids: list[list[int]], places: list[list[int]]) -> dict[str, np.ndarray]:
    return {"ids": np.array(ids), "position": np.array(places)}


def test_runs_write_their_rows_where_they_are() -> None:
    kept = memory()
    address = kept.tensors["state:k"].ctypes.data
    several = kept.run(feeds([[1, 2], [3, 4]], [[0, 1], [2, 3]]))
    assert several["y"].tolist() == [[1.5, 2.5], [3.5, 4.5]]
    one = kept.run(feeds([[5], [6]], [[2], [4]]))["y"]
    assert one.tolist() == [[5.5], [6.5]]
    assert kept.run(feeds([[7], [8]], [[3], [0]]))["y"] is one
    assert kept.tensors["state:k"][..., 1].tolist() == [[1, 2, 5, 7, 0], [8, 0, 3, 4, 6]]
    assert kept.tensors["state:k"].ctypes.data == address
    assert kept.nbytes == 2 * 5 * 2 * 4


def test_sequences_are_taken_from_another_state() -> None:
    first, second = memory(), memory(3)
    first.run(feeds([[1, 2], [3, 4]], [[0, 1], [0, 1]]))
    second.take(first, np.array([1, 1, 0]), 2)
    assert second.tensors["state:k"][:, :, 0].tolist() == [
        [3, 4, 0, 0, 0],
        [3, 4, 0, 0, 0],
        [1, 2, 0, 0, 0],
    ]


def test_a_part_of_some_sequences_is_moved() -> None:
    kept = memory(3)
    kept.run(feeds([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[0, 1, 2]] * 3))
    kept.move(np.array([0, 1]), np.array([1, 0]), 1, 3)
    assert kept.tensors["state:k"][:, :3, 1].tolist() == [[1, 5, 6], [4, 2, 3], [7, 8, 9]]
    kept.move(np.array([], int), np.array([], int), 0, 3)
    assert kept.tensors["state:k"][:, :3, 1].tolist() == [[1, 5, 6], [4, 2, 3], [7, 8, 9]]


ONE = (
    TensorSpec("ids", "int64", (1, "new_tokens")),
    TensorSpec("position", "int64", (1, "new_tokens")),
    TensorSpec("state:k", "float32", (1, 5, 2)),
)


def test_a_stage_of_one_sequence_runs_for_each() -> None:
    def of_one(given: dict[str, Any]) -> list[np.ndarray]:
        assert all(len(array) == 1 for array in given.values())
        return write(given)

    stage = StubStage([spec.name for spec in ONE], ["y", "next:k"], of_one)
    kept, whole = StateMemory(stage, ONE, 3, {}), memory(3)
    runs = [
        feeds([[1, 2], [3, 4], [5, 6]], [[0, 1], [0, 1], [1, 2]]),
        feeds([[7], [8], [9]], [[2], [3], [4]]),
        feeds([[5], [6], [4]], [[3], [4], [0]]),
    ]
    for one in runs:
        np.testing.assert_array_equal(kept.run(one)["y"], whole.run(one)["y"])
        np.testing.assert_array_equal(kept.tensors["state:k"], whole.tensors["state:k"])
    for state in (kept, whole):
        state.take(state, np.array([2, 0, 0]), 5)
    again = feeds([[1], [2], [3]], [[1], [1], [1]])
    np.testing.assert_array_equal(kept.run(again)["y"], whole.run(again)["y"])
    np.testing.assert_array_equal(kept.tensors["state:k"], whole.tensors["state:k"])
    assert kept.nbytes == whole.nbytes == StateMemory.bytes_of(stage, ONE, 3)


def test_a_stage_of_another_number_of_sequences_is_refused() -> None:
    two = tuple(TensorSpec(s.name, s.dtype, (2, *s.shape[1:])) for s in ONE)
    stage = StubStage([spec.name for spec in two], ["y", "next:k"], write)
    assert StateMemory(stage, two, 2, {}).tensors["state:k"].shape[0] == 2
    with pytest.raises(InputError, match="a fixed number of sequences.*got 3 sequences"):
        StateMemory(stage, two, 3, {})
