"""Bindings: arrays fixed in memory, through one stage and through two."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.runtime.binding import Binding
from unit.runtime.stub_stage import StubStage


def test_what_is_written_into_the_inputs_is_what_runs() -> None:
    stage = StubStage(["x"], ["double", "sum"], lambda f: [f["x"] * 2, f["x"].sum(keepdims=True)])
    x = np.array([1.0, 2.0])
    binding = Binding([(stage, {"x": x}, ("double", "sum"))])
    np.testing.assert_array_equal(binding.outputs["double"], [2.0, 4.0])
    places = {name: array.ctypes.data for name, array in binding.outputs.items()}
    x[...] = [5.0, 7.0]
    found = binding.run()
    np.testing.assert_array_equal(found["double"], [10.0, 14.0])
    np.testing.assert_array_equal(found["sum"], [12.0])
    assert {name: array.ctypes.data for name, array in found.items()} == places
    with pytest.raises(TypeError):
        binding.outputs["double"] = x  # type: ignore[index]


def test_the_first_stages_outputs_reach_the_second() -> None:
    context = StubStage(["c"], ["k"], lambda f: [f["c"] + 1])
    query = StubStage(["q", "k"], ["y"], lambda f: [f["q"] * f["k"]])
    c, q = np.array([1.0]), np.array([10.0])
    binding = Binding([(context, {"c": c}, ("k",)), (query, {"q": q}, ("y",))])
    assert set(binding.outputs) == {"y"}
    c[...], q[...] = 4.0, 3.0
    np.testing.assert_array_equal(binding.run()["y"], [15.0])


def test_outputs_that_an_engine_gives_strided_are_bound_contiguously() -> None:
    stage = StubStage(["x"], ["t"], lambda f: [f["x"].T])
    x = np.arange(6.0).reshape(2, 3)
    binding = Binding([(stage, {"x": x}, ("t",))])
    assert binding.outputs["t"].flags.c_contiguous
    x += 1
    np.testing.assert_array_equal(binding.run()["t"], x.T)
