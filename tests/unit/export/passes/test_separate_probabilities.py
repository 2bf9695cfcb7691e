"""A second softmax serves what else is made of probabilities; the first one fuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.fuse_unfused_attention import FuseUnfusedAttentionPass
from crossfuse.export.passes.separate_probabilities import SeparateProbabilitiesPass
from onnx_building import BOOL, Graph
from small_graphs import applied, computed, counts, feeds_of, model_of, same_numbers, untouched


def attention(how: str) -> ir.Model:
    """``(root)``'s attention, whose probabilities are used for more, in one way."""
    g = Graph()
    q = g.input("q", ["B", 2, "L", 4])
    k, v = (g.input(name, ["B", 2, "S", 4]) for name in "kv")
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g.op("Mul", scores, g.weight(0.5, np.float32))
    hidden = g.input("hidden", ["B", 1, 1, "S"], BOOL)
    scores = g.op("Where", hidden, g.weight(-1e9, np.float32), scores)
    name = ["p"] if how == "returned" else []
    weights = g.op("Softmax", scores, axis=3, outputs=name)
    dropped = g.op("Dropout", weights)
    g.op("MatMul", dropped, v, outputs=["y"])
    g.output("y", ["B", 2, "L", 4])
    if how == "returned":
        g.output("p", ["B", 2, "L", "S"])
    elif how == "averaged":
        g.op("ReduceMean", weights, g.ints(1), keepdims=0, outputs=["p"])
        g.output("p", ["B", "L", "S"])
    elif how == "behind the dropout":
        g.op("Gather", dropped, g.ints(1), axis=1, outputs=["p"])
        g.output("p", ["B", 1, "L", "S"])
    return model_of(g)


@pytest.mark.parametrize("how", ["returned", "averaged", "behind the dropout"])
def test_the_attention_fuses_and_the_output_stays(how: str) -> None:
    model = attention(how)
    assert FuseUnfusedAttentionPass()(model).missed, "without it, the attention stays"
    feeds = feeds_of(model)
    before = computed(model, feeds)
    names = [value.name for value in model.graph.outputs]
    assert SeparateProbabilitiesPass([""])(model).modified
    assert [value.name for value in model.graph.outputs] == names
    result = applied(FuseUnfusedAttentionPass(), model)
    assert not result.missed
    assert (counts(model)["FusedAttention"], counts(model)["Softmax"]) == (1, 1)
    same_numbers(before, computed(model, feeds))


def test_it_must_be_asked_for() -> None:
    untouched(SeparateProbabilitiesPass([]), attention("averaged"))
    untouched(SeparateProbabilitiesPass(["another.module"]), attention("averaged"))


def test_a_softmax_with_one_use_stays() -> None:
    untouched(SeparateProbabilitiesPass([""]), attention("not at all"))
