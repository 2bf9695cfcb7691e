"""Equal things are computed once; attentions never merge."""

from __future__ import annotations

import numpy as np

from crossfuse.export.passes.merge_duplicates import MergeDuplicatesPass
from crossfuse.graph.attention_node import attention_nodes
from onnx_building import BOOL, Graph
from small_graphs import applied, counts, fused, model_of, untouched


def test_masks_merge_and_attentions_do_not() -> None:
    g = Graph()
    x, m = g.input("x", ["B", "L", 8]), g.input("m", ["B", "L"], BOOL)
    outs = []
    for _ in range(2):
        mask = g.op("Unsqueeze", g.op("Not", m), g.ints(1, 2))
        outs.append(fused(g, x, x, x, mask))
    g.op("Add", *outs, outputs=["y"])
    g.output("y", ["B", "L", 8])
    model = model_of(g, shapes={o: ["B", "L", 8] for o in outs})
    del model.graph.initializers["w1"]
    for node in model.graph:  # both take the one weight, as after equal weights were joined
        if node.op_type == "Unsqueeze":
            node.replace_input_with(1, model.graph.initializers["w0"])
    assert applied(MergeDuplicatesPass(), model).modified
    assert counts(model) == {"Not": 1, "Unsqueeze": 1, "FusedAttention": 2, "Add": 1}
    for node in attention_nodes(model.graph):
        assert set(node.attributes) == {"num_heads", "kv_num_heads", "scale", "causal"}


def test_what_differs_in_an_attribute_stays() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    parts = [g.op("Softmax", x, axis=axis) for axis in (1, 2)]
    g.op("Mul", *parts, outputs=["y"])
    g.output("y", ["B", "L", 8])
    untouched(MergeDuplicatesPass(), model_of(g))


def test_different_weights_stay() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    parts = [g.op("Mul", x, g.weight(n, np.float32)) for n in (2, 3)]
    g.op("Add", *parts, outputs=["y"])
    g.output("y", ["B", "L", 8])
    untouched(MergeDuplicatesPass(), model_of(g))
