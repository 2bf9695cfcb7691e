"""Which dimension counts samples of contexts and queries alike."""

from __future__ import annotations

import pytest

from crossfuse.export.split.shared_batch import shared_batch
from onnx_text import parse

ATTEND = """k = MatMul(image, w) t = Transpose<perm = {}>(k) q = Transpose<perm = {}>(text)
    a = MatMul(q, t) p = Softmax(a) y = Identity(p)"""
BATCH_FIRST = ATTEND.format("[0, 2, 1]", "[0, 1, 2]")
SECOND = ATTEND.format("[1, 2, 0]", "[1, 0, 2]")
W = [[1.0] * 4] * 4


@pytest.mark.parametrize(
    ("inputs", "body", "expected"),
    [
        ("float[n, s, 4] image, float[n, l, 4] text", BATCH_FIRST, "n"),
        ("float[m, s, 4] image, float[n, l, 4] text", BATCH_FIRST, None),
        ("float[s, n, 4] image, float[l, n, 4] text", SECOND, "n"),
        # Both lengths are one dimension: what is along it attends to each other.
        ("float[s, n, 4] image, float[s, n, 4] text", SECOND, "n"),
        # Not the second axis where that is no batch, or where the first one is.
        ("float[3, s, 4] image, float[3, s, 4] text", BATCH_FIRST, None),
        ("float[n, s, 4] image, float[n, s, 4] text", BATCH_FIRST, "n"),
        # A mask has its batch first all the same.
        ("float[s, n, 4] image, bool[n, s] hide, float[n, l, 4] text", "", "n"),
        # Of several, that of most inputs.
        ("float[a, 4] image, float[n, 4] more, float[a, 2] text, float[n, 2] ids", "", "a"),
        (
            "float[a, 4] image, float[n, 4] more, float[a, 2] text, float[n, 2] ids, int64[n] kind",
            "",
            "n",
        ),
    ],
)
def test_the_shared_batch(inputs: str, body: str, expected: str | None) -> None:
    if body:
        model = parse(f"({inputs}) => (float[a1, b1, c1] y) {{ {body} }}", w=W)
    else:
        model = parse(f"({inputs}) => (int64[r] y) {{ y = Shape(text) }}")
    assert shared_batch(model.graph, ["image", "hide", "more"]) == expected
