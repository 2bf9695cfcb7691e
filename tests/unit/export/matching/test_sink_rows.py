"""Sinks as keys of zeros (``crossfuse.export.matching.sink_rows``): the numbers stay, and keys,
values, masks and biases have the columns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.fuse_unfused_attention import FuseUnfusedAttentionPass
from crossfuse.graph.attention_node import AttentionNode, attentions
from onnx_building import BOOL, Graph, normal
from small_graphs import applied, counts, model_of


def with_sinks(g: Graph, *, first: bool, masked: bool, biased: bool, valued: bool) -> None:
    q = g.input("q", ["B", 2, "L", 4])
    k, v = (g.input(name, ["B", 2, "S", 4]) for name in "kv")
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if masked:
        hidden = g.input("hidden", ["B", 1, 1, "S"], BOOL)
        scores = g.op("Where", hidden, g.weight(-np.inf, np.float32), scores)
    if biased:
        scores = g.op("Add", scores, g.input("bias", [1, 2, "L", "S"]))
    sizes = g.op("Concat", g.op("Shape", scores, end=3), g.ints(2), axis=0)
    sinks = g.op("Expand", g.weight(normal(1, 2, 1, 2)), sizes)
    parts = [sinks, scores] if first else [scores, sinks]
    joined = g.op("Softmax", g.op("Concat", *parts, axis=3), axis=3)
    if valued:
        rows = g.op("Slice", v, g.ints(0), g.ints(2), g.ints(2))
        v = g.op("Concat", *((rows, v) if first else (v, rows)), axis=2)
    else:
        start, end = (2, np.iinfo(np.int64).max) if first else (0, -2)
        joined = g.op("Slice", joined, g.ints(start), g.ints(end), g.ints(3))
    g.op("MatMul", joined, v, outputs=["y"])
    g.output("y", ["B", 2, "L", 4])


def fused(**how: bool) -> tuple[ir.Model, AttentionNode]:
    g = Graph()
    with_sinks(g, **how)
    model = model_of(g)
    assert applied(FuseUnfusedAttentionPass(), model).modified
    (attention,) = attentions(model.graph)
    return model, attention


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("valued", [True, False])
def test_the_numbers_stay(first: bool, masked: bool, biased: bool, valued: bool) -> None:
    model, attention = fused(first=first, masked=masked, biased=biased, valued=valued)
    assert not {"Softmax", "MatMul", "Slice"} & set(counts(model)) - (
        {"Slice"} if valued else set()
    )
    assert (attention.mask is not None, attention.bias is not None) == (masked, True)
    assert attention.bias is not None
    assert attention.bias.shape is not None
    assert attention.bias.shape[2] == ("L" if biased else 1), "logits are not copied to every row"
