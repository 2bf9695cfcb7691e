"""Softmax chains found in small graphs, and what each look-alike says."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.matching.softmax_chain import (
    Mismatch,
    SoftmaxChain,
    active_values,
    find_softmax_chains,
    scalar_of,
)
from onnx_text import node_of, parse, value_of

INPUTS = "(float[b, h, l, 8] q, float[b, h, 8, s] k, float[b, h, s, 8] v, float[l, s] bias)"
OUTPUT = "(float[b, h, l, 8] y)"


def graph(body: str, outputs: str = OUTPUT, **weights: object) -> ir.Model:
    return parse(f"{INPUTS} => {outputs} {{ {body} }}", **weights)


def chains(body: str, outputs: str = OUTPUT, **weights: object) -> list[SoftmaxChain]:
    model = graph(body, outputs, **weights)
    return find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))


def names(links: object) -> list[str]:
    return [link.node.op_type for link in links]  # type: ignore[attr-defined]


def test_a_chain_has_both_products_and_what_lies_between() -> None:
    (chain,) = chains(
        """a = MatMul(q, k) c = Mul(a, scale) d = Add(bias, c) m = ReduceMax(d) e = Sub(d, m)
           p = Softmax(e) i = Identity(p) y = MatMul(i, v)""",
        scale=0.5,
    )
    assert chain.scores.op_type == "MatMul"
    assert names(chain.before) == ["Mul", "Add", "Sub"]
    assert [link.operand for link in chain.before] == [0, 1, 0]
    assert names(chain.after) == ["Identity"]
    assert (chain.values.node.op_type, chain.values.operand) == ("MatMul", 0)
    assert [node.op_type for node in chain.helpers] == ["ReduceMax"]
    assert {node.op_type for node in chain.interior()} == {
        *("MatMul", "Mul", "Add", "Sub", "ReduceMax", "Softmax", "Identity")
    }
    assert chain.values.node not in chain.interior()


def test_a_guard_against_nan_belongs_to_the_chain() -> None:
    body = """a = MatMul(q, k) p = Softmax(a) n = IsNaN(p) g = Where(n, zero, p)
              y = MatMul(g, v)"""
    (chain,) = chains(body, zero=0.0)
    assert names(chain.after) == ["Where"]
    assert [node.op_type for node in chain.helpers] == ["IsNaN"]
    with pytest.raises(Mismatch, match="also used by IsNaN"):
        chains(body, zero=1.0)


def test_one_softmax_may_be_of_two_attentions() -> None:
    found = chains(
        "a = MatMul(q, k) p = Softmax(a) x = MatMul(p, v) z = MatMul(p, v) y = Add(x, z)"
    )
    assert len(found) == 2
    assert found[0].values.node is not found[1].values.node


def test_of_two_products_the_one_of_activations_is_the_scores() -> None:
    (chain,) = chains(
        """r = MatMul(q, table) a = MatMul(q, k) c = Add(r, a) p = Softmax(c)
           y = MatMul(p, v)""",
        table=np.ones((8, 1)),
    )
    assert chain.scores.outputs[0].name == "a"


def test_learned_queries_are_queries() -> None:
    model = parse(
        "(float[b, 8, s] k, float[b, s, 8] v) => (float[b, 3, 8] y) "
        "{ a = MatMul(w, k) p = Softmax(a) y = MatMul(p, v) }",
        w=np.ones((3, 8)),
    )
    (chain,) = find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))
    assert chain.scores.outputs[0].name == "a"


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("p = Softmax(q) y = Identity(p)", OUTPUT, "not over a product of activations"),
        (
            "a = MatMul(q, w) p = Softmax(a) y = MatMul(p, w)",
            OUTPUT,
            "a product with weights, so there are no keys",
        ),
        (
            "a = MatMul(q, k) t = Transpose(a) m = MatMul(t, w) p = Softmax(m) y = MatMul(p, v)",
            OUTPUT,
            "its scores are mixed by weights on the way to the softmax",
        ),
        (
            "a = MatMul(q, k) t = Tanh(a) p = Softmax(t) y = MatMul(p, v)",
            OUTPUT,
            "its scores go through Tanh on the way to the softmax",
        ),
        (
            "a = MatMul(q, k) p = Softmax(a) y = MatMul(p, v)",
            "(float[b, h, l, s] p, float[b, h, l, 8] y)",
            "its attention probabilities are an output of the model",
        ),
        (
            "a = MatMul(q, k) p = Softmax(a) i = Identity(p) y = MatMul(i, v)",
            "(float[b, h, l, s] i, float[b, h, l, 8] y)",
            "its attention probabilities are an output of the model",
        ),
        (
            "a = MatMul(q, k) p = Softmax(a) y = Identity(q)",
            OUTPUT,
            "its attention probabilities lead nowhere",
        ),
        (
            "a = MatMul(q, k) p = Softmax(a) r = Relu(p) y = MatMul(r, v)",
            OUTPUT,
            "its attention probabilities go through Relu, which the fused operator does not have",
        ),
        (
            "a = MatMul(q, k) p = Softmax(a) t = Transpose(p) r = Relu(p) y = MatMul(t, v)",
            "(float[b, h, l, s] r, float[b, h, l, 8] y)",
            "its attention probabilities are also used by Relu",
        ),
    ],
)
def test_what_is_no_attention_says_why(body: str, outputs: str, reason: str) -> None:
    weights = {"w": np.eye(8)} if " w)" in body else {}
    with pytest.raises(Mismatch, match=reason):
        chains(body, outputs, **weights)


def test_probabilities_times_weights_have_no_values() -> None:
    model = parse(
        "(float[b, l, 8] q, float[b, 8, 5] k) => (float[b, l, 4] y) "
        "{ a = MatMul(q, k) p = Softmax(a) y = MatMul(p, w) }",
        w=np.ones((5, 4)),
    )
    with pytest.raises(Mismatch, match="multiplied with weights, so there are no values"):
        find_softmax_chains(node_of(model, "Softmax"), active_values(model.graph))


def test_active_values_depend_on_inputs_or_their_sizes() -> None:
    model = graph("n = Shape(q) e = Expand(w, n) c = Neg(w) d = Add(e, c) y = MatMul(d, d)", w=1.0)
    active = active_values(model.graph)
    assert {v.name for v in active if v.producer() is not None} == {"n", "e", "d", "y"}


@pytest.mark.parametrize(
    ("array", "number"),
    [(0.5, 0.5), ([3], 3.0), ([[True]], 1.0), ([1.0, 2.0], None), (np.inf, np.inf)],
)
def test_a_scalar_is_a_constant_of_one_element(array: object, number: float | None) -> None:
    model = graph(
        "c = Mul(q, w) y = MatMul(c, c)" if array in (0.5, np.inf) else "y = Identity(q)", w=array
    )
    assert scalar_of(value_of(model, "w")) == number
    assert scalar_of(model.graph.inputs[0]) is None
    assert scalar_of(None) is None


def test_what_an_attention_gives_is_no_score() -> None:
    """Its product with weights, behind a softmax, mixes no heads of another one."""
    body = """a = MatMul(q, k) s = Softmax(a) o = MatMul(s, v) m = MatMul(o, w) p = Softmax(m)
              y = MatMul(p, w)"""
    model = graph(body, w=np.eye(8))
    last = [node for node in model.graph if node.op_type == "Softmax"][-1]
    with pytest.raises(Mismatch, match="a product with weights, so there are no keys"):
        find_softmax_chains(last, active_values(model.graph))
