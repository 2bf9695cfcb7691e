"""What is taken of one part of tokens is taken from that part."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.split.one_part import of_one_part
from crossfuse.export.split.rows import Cut, Rows
from crossfuse.graph.builder import GraphBuilder
from onnx_text import parse, run_reference, value_of, with_tape

RNG = np.random.default_rng(0)
FEEDS = {
    "first": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "rest": RNG.standard_normal((2, 5, 4)).astype(np.float32),
}
WHOLE = np.concatenate([FEEDS["first"], FEEDS["rest"]], 1)

TAKEN = {
    "the rest": ("Slice(x, three, end, one)", WHOLE[:, 3:]),
    "the first": ("Slice(x, zero, three, one)", WHOLE[:, :3]),
    "a part of the rest": ("Slice(x, four, six, one)", WHOLE[:, 4:6]),
    "all but the last": ("Slice(x, three, minus, one)", WHOLE[:, 3:-1]),
    "the last": ("Slice(x, minus, end, one)", WHOLE[:, -1:]),
    "the last place": ("Gather<axis = 1>(x, last)", WHOLE[:, -1]),
    "the first place": ("Gather<axis = 1>(x, begin)", WHOLE[:, 0]),
    "a place of the rest": ("Gather<axis = 1>(x, four)", WHOLE[:, [4]]),
}
OF_BOTH = {
    "some of both": "Slice(x, two, end, one)",
    "some of the first": "Slice(x, zero, two, one)",
    "more than the rest surely has": "Slice(x, minus2, end, one)",
    "every other": "Slice(x, three, end, one, two)",
    "features": "Slice(x, zero, two, two)",
    "places from behind": "Gather<axis = 1>(x, minus2)",
    "several places": "Gather<axis = 1>(x, both)",
    "features by place": "Gather<axis = 2>(x, begin)",
    "something else": "Relu(x)",
}


def taken(text: str):
    model = parse(
        f"""(float[B, 3, 4] first, float[B, T, 4] rest) => (float y) <float[B, N, 4] x>
            {{ x = Concat<axis = 1>(first, rest) v = {text} y = ReduceSum<keepdims = 0>(v) }}""",
        **{"zero": [0], "one": [1], "two": [2], "three": [3], "four": [4], "six": [6]},
        **{"end": [2**31 - 1], "minus": [-1], "minus2": [-2], "last": -1, "begin": 0},
        both=[0, 5],
    )
    first, rest = model.graph.inputs
    node = value_of(model, "v").producer()
    assert node is not None
    build = GraphBuilder()
    rows = Rows((first, 1), (rest, 1))
    return model, build, of_one_part(build, node, Cut(1, rows, first, rest))


@pytest.mark.parametrize("name", list(TAKEN))
def test_it_is_taken_from_the_part_that_has_it(name: str) -> None:
    text, expected = TAKEN[name]
    model, build, result = taken(text)
    assert result is not None
    (got,) = run_reference(with_tape(model, list(build.nodes), result), FEEDS)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", list(OF_BOTH))
def test_what_is_of_both_is_left(name: str) -> None:
    assert taken(OF_BOTH[name])[2] is None
