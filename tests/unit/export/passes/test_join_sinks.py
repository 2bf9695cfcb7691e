"""Sinks in a denominator, or in a factor of the logsumexp, become a column beside the scores."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.export.passes.fuse_unfused_attention import FuseUnfusedAttentionPass
from crossfuse.export.passes.join_sinks import JoinSinksPass
from onnx_building import Graph, normal
from small_graphs import applied, counts, model_of, untouched

LAST = -1


def scores(g: Graph) -> str:
    q, k = g.input("q", ["B", 2, "L", 4]), g.input("k", ["B", 2, 4, "S"])
    return g.op("MatMul", q, k)


def finish(g: Graph, weights: str) -> None:
    g.op("MatMul", weights, g.input("v", ["B", 2, "S", 4]), outputs=["y"])
    g.output("y", ["B", 2, "L", 4])


def quotient(g: Graph, powers: str, beside: str, *, keepdims: int = 1) -> str:
    total = g.op("ReduceSum", powers, g.ints(LAST), keepdims=keepdims)
    return g.op("Div", powers, g.op("Add", beside, total))


def of_a_number(g: Graph) -> None:
    finish(g, quotient(g, g.op("Exp", scores(g)), g.weight(1.0, np.float32)))


def of_a_shifted_number(g: Graph) -> None:
    s = scores(g)
    most = g.op("Relu", g.op("ReduceMax", s, g.ints(LAST), keepdims=1))
    powers = g.op("Exp", g.op("Sub", s, most))
    finish(g, quotient(g, powers, g.op("Exp", g.op("Neg", most))))


def of_shifted_logits(g: Graph) -> None:
    s, sink = scores(g), g.weight(normal(2, 1, 1))
    most = g.op("Max", g.op("ReduceMax", s, g.ints(LAST), keepdims=1), sink)
    powers = g.op("Exp", g.op("Sub", s, most))
    finish(g, quotient(g, powers, g.op("Exp", g.op("Sub", sink, most))))


def of_plain_logits(g: Graph) -> None:
    sink = g.op("Exp", g.weight(normal(1, 2, 1, 1)))
    finish(g, quotient(g, g.op("Exp", scores(g)), sink))


def of_the_logsumexp(g: Graph) -> None:
    s = scores(g)
    total = g.op("ReduceLogSumExp", s, g.ints(LAST), keepdims=0)
    gate = g.op("Sub", g.op("Unsqueeze", total, g.ints(LAST)), g.weight(normal(1, 2, 1, 1)))
    product = g.op("MatMul", g.op("Softmax", s, axis=3), g.input("v", ["B", 2, "S", 4]))
    g.op("Mul", product, g.op("Sigmoid", gate), outputs=["y"])
    g.output("y", ["B", 2, "L", 4])


@pytest.mark.parametrize(
    "form",
    [of_a_number, of_a_shifted_number, of_shifted_logits, of_plain_logits, of_the_logsumexp],
    ids=lambda form: form.__name__,
)
def test_a_sink_is_joined_and_fuses(form) -> None:
    g = Graph()
    form(g)
    model = model_of(g)
    assert applied(JoinSinksPass(), model).modified
    assert not {"Exp", "ReduceSum", "Div", "Sigmoid", "ReduceLogSumExp"} & set(counts(model))
    assert applied(FuseUnfusedAttentionPass(), model).modified
    found = counts(model)
    assert found["FusedAttention"] == 1
    assert not {"Softmax", "Expand"} & set(found) - {"Expand"}


def of_a_guard(g: Graph) -> None:
    """What keeps a denominator from 0 is no sink."""
    finish(g, quotient(g, g.op("Exp", scores(g)), g.weight(1e-9, np.float32)))


def of_another_sum(g: Graph) -> None:
    s = scores(g)
    finish(g, quotient(g, g.op("Exp", s), g.op("Exp", s)))


def of_another_softmax(g: Graph) -> None:
    s = scores(g)
    total = g.op("ReduceLogSumExp", g.op("Neg", s), g.ints(LAST), keepdims=1)
    product = g.op("MatMul", g.op("Softmax", s, axis=3), g.input("v", ["B", 2, "S", 4]))
    g.op("Mul", product, g.op("Sigmoid", total), outputs=["y"])
    g.output("y", ["B", 2, "L", 4])


@pytest.mark.parametrize(
    "form", [of_a_guard, of_another_sum, of_another_softmax], ids=lambda form: form.__name__
)
def test_what_is_no_sink_stays(form) -> None:
    g = Graph()
    form(g)
    untouched(JoinSinksPass(), model_of(g))
