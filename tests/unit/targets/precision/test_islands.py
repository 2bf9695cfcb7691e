"""Each rule about what stays in fp32: a node on which it fires, and one that looks alike on which
it does not."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.precision.islands import (
    GRAPH_RULES,
    NODE_RULES,
    IslandOptions,
    asked_to_stay,
    computes_floats,
    decides_a_choice,
    find_islands,
    gives_floats,
    has_a_body,
    lacks_a_bf16_kernel,
    loses_too_much,
    makes_indices,
    node_key,
    of_an_unknown_domain,
    takes_an_fp32_result,
)
from onnx_text import node_of, parse

PLAIN = IslandOptions()


def graph(body: str, output: str = "float[b, 4] y", **weights: object) -> ir.Model:
    return parse(f"(float[b, 4] x) => ({output}) {{ {body} }}", **weights)


def nodes(model: ir.Model) -> list[ir.Node]:
    return list(model.graph)


def found_by(rule: object, model: ir.Model, islands: dict[ir.Node, str] | None = None) -> set[str]:
    """Operators of the nodes that a graph rule gives."""
    assert callable(rule)
    return {node.op_type for node in rule(nodes(model), islands or {})}


def test_a_node_that_the_caller_names_stays() -> None:
    (node,) = nodes(graph("y = Relu(x)"))
    assert asked_to_stay(node, IslandOptions({"n0": "asked"})) == "asked"
    assert asked_to_stay(node, IslandOptions({"n1": "asked"})) is None


def test_a_node_with_a_body_stays() -> None:
    body = ir.Graph([], [], nodes=[], name="body")
    branch = ir.node("If", [ir.Value(name="c")], attributes={"then_branch": body})
    assert has_a_body(branch, PLAIN) == "it has a body of its own"
    assert has_a_body(nodes(graph("y = Relu(x)"))[0], PLAIN) is None


@pytest.mark.parametrize(
    ("domain", "stays"), [("", False), (DOMAIN, False), ("com.microsoft", False), ("mine", True)]
)
def test_an_operator_of_an_unknown_domain_stays(domain: str, stays: bool) -> None:
    node = ir.node("Op", [ir.Value(name="x")], domain=domain)
    reason = of_an_unknown_domain(node, PLAIN)
    assert reason == ("the operator mine.Op is not known to take half floats" if stays else None)


def test_an_operator_without_a_kernel_stays() -> None:
    options = IslandOptions(without_kernel={"Pad"})
    assert lacks_a_bf16_kernel(ir.node("Pad", []), options) == (
        "the target has no bf16 kernel for Pad"
    )
    assert lacks_a_bf16_kernel(ir.node("Relu", []), options) is None
    assert lacks_a_bf16_kernel(ir.node("Pad", [], domain="com.microsoft"), options) is None


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        ("y = Softmax(x)", True),
        ("y = Exp(x)", True),
        ("y = Relu(x)", False),
        ("y = LayerNormalization(x, w)", False),
    ],
)
def test_reductions_and_functions_stay(body: str, stays: bool) -> None:
    model = graph(body, **({"w": [1.0] * 4} if " w" in body else {}))
    reason = loses_too_much(nodes(model)[0], PLAIN)
    assert (reason is not None) == stays
    assert reason is None or reason.endswith(" loses too much in half precision")


def test_a_range_of_integers_is_no_float() -> None:
    model = parse("(int64 n) => (int64[m] y) { y = Range(zero, n, one) }", zero=0, one=1)
    assert loses_too_much(nodes(model)[0], PLAIN) is None


def test_what_a_choice_is_made_by_stays() -> None:
    model = graph("a = MatMul(x, w) b = Neg(a) y = ArgMin(b)", "int64[1, 4] y", w=[[1.0] * 4] * 4)
    found = decides_a_choice(nodes(model), {})
    assert {node.op_type for node in found} == {"ArgMin", "MatMul", "Neg"}
    assert set(found.values()) == {"an ArgMin inside the model chooses by it"}


def test_a_choice_behind_an_attention_decides_nothing() -> None:
    model = graph("a = Neg(x) y = ArgMax(a)", "int64[1, 4] y")
    neg = node_of(model, "Neg")
    attention = ir.node("FusedAttention", list(neg.inputs), domain=DOMAIN)
    neg.replace_input_with(0, attention.outputs[0])
    model.graph.insert_before(neg, attention)
    assert decides_a_choice(nodes(model), {}) == {}


def test_arithmetic_whose_results_become_integers_stays() -> None:
    body = "a = Mul(x, c) d = Floor(a) y = Cast<to = 7>(d)"
    assert found_by(makes_indices, graph(body, "int64[b, 4] y", c=3.0)) == {"Mul", "Floor"}
    used = body + " z = Relu(d)"
    both = graph(used, "int64[b, 4] y, float[b, 4] z", c=3.0)
    assert found_by(makes_indices, both) == set()


def test_an_output_is_no_index() -> None:
    both = graph("d = Floor(x) y = Cast<to = 7>(d)", "int64[b, 4] y, float[b, 4] d")
    assert found_by(makes_indices, both) == set()


def test_arithmetic_on_an_fp32_result_stays() -> None:
    model = graph("s = Sqrt(x) a = Add(s, eps) y = Relu(a)", eps=1e-6)
    islands = {node_of(model, "Sqrt"): "it loses too much"}
    found = takes_an_fp32_result(nodes(model), islands)
    assert {n.op_type: why for n, why in found.items()} == {
        "Add": "it takes the result of a Sqrt in fp32"
    }
    assert takes_an_fp32_result(nodes(model), {}) == {}


def test_arithmetic_two_steps_behind_goes_on_in_half() -> None:
    model = graph("s = Sqrt(x) a = Add(s, eps) y = Mul(a, eps)", eps=1e-6)
    assert {n.op_type for n in find_islands(nodes(model), PLAIN)} == {"Sqrt", "Add"}


def test_the_first_node_rule_that_fires_gives_the_reason() -> None:
    (node,) = nodes(graph("y = Softmax(x)"))
    islands = find_islands([node], IslandOptions({"n0": "asked"}, {"Softmax"}))
    assert islands == {node: "asked"}
    islands = find_islands([node], IslandOptions(without_kernel={"Softmax"}))
    assert islands == {node: "the target has no bf16 kernel for Softmax"}


def test_constants_and_integers_are_no_islands() -> None:
    model = parse("(int64[b] x) => (int64[b] y) { c = Constant<value_float = 1.0>() y = Neg(x) }")
    options = IslandOptions({node_key(node): "asked" for node in model.graph})
    assert find_islands(nodes(model), options) == {}


def test_every_rule_is_in_a_list() -> None:
    assert set(NODE_RULES) == {
        asked_to_stay,
        has_a_body,
        of_an_unknown_domain,
        lacks_a_bf16_kernel,
        loses_too_much,
    }
    assert set(GRAPH_RULES) == {decides_a_choice, makes_indices, takes_an_fp32_result}
    for rule in (*NODE_RULES, *GRAPH_RULES):
        assert rule.__doc__


def test_which_nodes_have_floats() -> None:
    give = node_of(graph("y = Relu(x)"), "Relu")
    take = node_of(graph("y = ArgMax(x)", "int64[1, 4] y"), "ArgMax")
    neither = node_of(parse("(int64[b] x) => (int64[b] y) { y = Neg(x) }"), "Neg")
    assert (gives_floats(give), computes_floats(give)) == (True, True)
    assert (gives_floats(take), computes_floats(take)) == (False, True)
    assert (gives_floats(neither), computes_floats(neither)) == (False, False)
