"""Heads, samples and contexts among the batch factors of a match."""

from __future__ import annotations

import pytest

from crossfuse.export.matching.attention_match import match_attention
from crossfuse.export.matching.axes import Axis, size_of
from crossfuse.export.matching.axis_roles import AxisRoles, axis_roles
from crossfuse.export.matching.softmax_chain import active_values, find_softmax_chains
from onnx_text import node_of, parse


def roles(inputs: str, before: str = "", **weights: object) -> AxisRoles:
    body = f"{before} a = MatMul(q, k) p = Softmax(a) o = MatMul(p, v)"
    text = f"{inputs} => (float[flat, 1] y) {{ {body} z = Flatten(o) y = ReduceMax(z, last) }}"
    model = parse(text, last=[1], **weights)
    (chain,) = find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))
    return axis_roles(match_attention(chain))


def dims(axis: Axis) -> int | str:
    return size_of(axis).dim


@pytest.mark.parametrize(
    ("q", "k", "v", "expected"),
    [
        ("b, 4, l, 8", "b, 4, 8, s", "b, 4, s, 8", ("b", 4, 4, "b")),
        ("b, 4, l, 8", "b, 1, 8, s", "b, 1, s, 8", ("b", 4, 1, "b")),
        ("b, 2, 3, l, 8", "b, 2, 1, 8, s", "b, 2, 1, s, 8", ("b", 6, 2, "b")),
        ("b, 4, l, 8", "4, 8, s", "4, s, 8", ("b", 4, 4, 1)),
        ("b, 4, l, 8", "8, s", "s, 8", ("b", 4, 1, 1)),
        ("b, l, 8", "b, 8, s", "b, s, 8", ("b", 1, 1, "b")),
        ("2, 4, l, 8", "2, 4, 8, s", "2, 4, s, 8", (2, 4, 4, 2)),
    ],
    ids=["plain", "one key head", "grouped", "one context", "neither", "one head", "fixed batch"],
)
def test_batch_heads_key_heads_and_contexts(q: str, k: str, v: str, expected: tuple) -> None:
    found = roles(f"(float[{q}] q, float[{k}] k, float[{v}] v)")
    assert (
        dims(found.batch),
        dims(found.heads),
        dims(found.kv_heads),
        dims(found.contexts),
    ) == expected
    assert (dims(found.rows), dims(found.keys)) == ("l", "s")


def test_merged_heads_are_split_as_the_features_were() -> None:
    """``[b, l, 32] → [b, l, 4, 8] → … → [4b, l, 8]``."""
    found = roles(
        "(float[2, l, 32] x, float[8, 8, s] k, float[8, s, 8] v)",
        """r = Reshape(x, split) t = Transpose<perm = [0, 2, 1, 3]>(r) q = Reshape(t, merge)""",
        split=[2, -1, 4, 8],
        merge=[8, -1, 8],
    )
    assert (dims(found.batch), dims(found.heads), dims(found.kv_heads)) == (2, 4, 4)


def test_a_merged_batch_of_unknown_heads_is_samples() -> None:
    found = roles("(float[n, l, 8] q, float[n, 8, s] k, float[n, s, 8] v)")
    assert (dims(found.batch), dims(found.heads), dims(found.contexts)) == ("n", 1, "n")
