"""Repeated key heads become grouped heads again, where each head is repeated alike."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from crossfuse.export.passes.group_heads import GroupHeadsPass
from crossfuse.graph.attention_node import attentions
from onnx_building import Graph
from small_graphs import applied, fused, model_of, untouched

Form = Callable[[Graph, str], str]


def each_head(g: Graph, x: str) -> str:
    """``[B, S, 2·4]`` → ``[B, S, 4·4]``: heads 1 1 2 2, on four axes and back."""
    heads = g.op("Transpose", g.op("Reshape", x, g.ints(0, 0, 2, 4)), perm=[0, 2, 1, 3])
    wide = g.op("Expand", g.op("Unsqueeze", heads, g.ints(2)), g.ints(1, 1, 2, 1, 1))
    merged = g.op("Reshape", wide, g.ints(2, 4, 5, 4))
    return g.op("Reshape", g.op("Transpose", merged, perm=[0, 2, 1, 3]), g.ints(0, 0, 16))


def whole_groups(g: Graph, x: str) -> str:
    """Heads 1 2 1 2."""
    heads = g.op("Reshape", x, g.ints(0, 0, 1, 2, 4))
    return g.op("Reshape", g.op("Expand", heads, g.ints(1, 1, 2, 1, 1)), g.ints(0, 0, 16))


def other_times(g: Graph, x: str) -> str:
    """One head, 1 1 1 1."""
    one = g.op("Slice", x, g.ints(0), g.ints(4), g.ints(2))
    heads = g.op("Reshape", one, g.ints(0, 0, 1, 1, 4))
    return g.op("Reshape", g.op("Expand", heads, g.ints(1, 1, 1, 4, 1)), g.ints(0, 0, 16))


def already_wide(g: Graph, x: str) -> str:
    return g.op("Concat", x, x, axis=2)


def attention(key: Form, value: Form) -> ir.Model:
    g = Graph()
    q, k, v = (g.input(n, [2, s, w]) for n, s, w in (("q", 3, 16), ("k", 5, 8), ("v", 5, 8)))
    out = fused(g, q, key(g, k), value(g, v), heads=4)
    g.op("Identity", out, outputs=["y"])
    g.output("y", [2, 3, 16])
    return model_of(g, shapes={out: [2, 3, 16]})


def test_keys_and_values_are_grouped() -> None:
    model = attention(each_head, each_head)
    result = applied(GroupHeadsPass(), model)
    assert result.modified
    assert not result.missed
    (found,) = attentions(model.graph)
    assert (found.num_heads, found.kv_num_heads) == (4, 2)
    assert [list(v.shape or ()) for v in (found.key, found.value)] == [[2, 5, 8]] * 2


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (each_head, already_wide, "its keys or of its values alone"),
        (already_wide, each_head, "its keys or of its values alone"),
        (each_head, whole_groups, "its keys or of its values alone"),
        (each_head, other_times, "a different number of times"),
        (whole_groups, whole_groups, None),
        (already_wide, already_wide, None),
    ],
)
def test_what_is_not_grouped(key: Form, value: Form, why: str | None) -> None:
    missed = untouched(GroupHeadsPass(), attention(key, value)).missed
    assert [m.reason for m in missed if why is None] == []
    assert all(why in m.reason for m in missed if why)
    assert len(missed) == (why is not None)
