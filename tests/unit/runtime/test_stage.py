"""What a stage has to have, and the base for engines on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossfuse.runtime.stage import HostStage, Stage


class Doubles(HostStage):
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return [2 * feeds["x"], feeds["x"] + 1]


def stage() -> Doubles:
    return Doubles("numpy", ["x"], ["double", "next"])


def test_a_subclass_with_run_alone_is_a_stage() -> None:
    made = stage()
    assert isinstance(made, Stage)
    assert made.boundary == (("x",), ("double", "next"))
    assert not made.on_device
    x = np.arange(3.0)
    for run in (made.run, made.run_mixed, made.run_on_device, lambda f: made.run_into(f, {})):
        double, following = run({"x": x})
        np.testing.assert_array_equal(double, [0, 2, 4])
        np.testing.assert_array_equal(following, [1, 2, 3])
    made.close()


def test_a_binding_reads_and_writes_in_place() -> None:
    made, x = stage(), np.arange(3.0)
    outputs = [np.empty(3), np.empty(3)]
    binding = made.bind({"x": x}, outputs)
    for start in (0.0, 5.0):
        x[:] = np.arange(start, start + 3)
        made.run_bound(binding)
        np.testing.assert_array_equal(outputs[0], 2 * x)
        np.testing.assert_array_equal(outputs[1], x + 1)
    with pytest.raises(ValueError, match="argument"):
        made.run_bound(made.bind({"x": x}, outputs[:1]))


def test_outputs_are_written_where_there_is_room_for_them() -> None:
    made, x = stage(), np.arange(3.0)
    double, following = made.run_into({"x": x}, {"next": x})
    np.testing.assert_array_equal(double, [0, 2, 4])
    assert following is x
    np.testing.assert_array_equal(x, [1, 2, 3])


def test_what_is_no_stage() -> None:
    class Half:
        provider = "numpy"
        boundary = ((), ())

        def run(self, feeds: object) -> list[object]:
            return []

    assert not isinstance(Half(), Stage)
    assert not isinstance(object(), Stage)
    with pytest.raises(NotImplementedError):
        HostStage("numpy", [], []).run({})
