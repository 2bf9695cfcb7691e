"""Features that no result is computed from are named."""

from __future__ import annotations

import pytest

from crossfuse.export.unread_inputs import unread_inputs
from onnx_text import parse

CASES = {
    "read": ("y = Add(text, image)", ()),
    "left out": ("y = Relu(text)", ("image",)),
    "only its size": ("s = Shape(image) y = Expand(text, s)", ("image",)),
    "read beside the results": ("z = Relu(image) y = Relu(text)", ("image",)),
    "read in a branch": (
        """b = ReduceMax<keepdims = 0>(ids) c = Cast<to = 9>(b)
           y = If (c) <
             then_branch = one () => (float[2, 3] a) { a = Add(text, image) },
             else_branch = two () => (float[2, 3] e) { e = Relu(text) }
           >""",
        (),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_features_that_no_result_is_computed_from(name: str) -> None:
    text, expected = CASES[name]
    model = parse(
        f"(float[2, 3] image, float[2, 3] text, int64[2, 3] ids) => (float[2, 3] y) {{ {text} }}"
    )
    assert unread_inputs(model.graph) == expected
