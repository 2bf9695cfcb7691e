"""Attention nodes read and written by the names of the contract."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.graph.attention_node import (
    AttentionAttributes,
    AttentionInputs,
    AttentionNode,
    attention_nodes,
    attentions,
    is_attention,
    role_at,
)
from crossfuse.graph.builder import GraphBuilder
from crossfuse.graph.metadata import CAPTURED, MODULE, SITE
from crossfuse.ops.contract import DOMAIN, INPUTS, NAME


def values() -> dict[str, ir.Value]:
    return {role: ir.Value(name=role) for role in INPUTS}


def node(*roles: str, **attributes: object) -> ir.Node:
    """A node made without the module under test: operands of these roles, in the contract's
    order."""
    made = values()
    given = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.5, **attributes}
    last = max(INPUTS.index(role) for role in roles)
    inputs = [made[role] if role in roles else None for role in INPUTS[: last + 1]]
    return ir.node(NAME, inputs, given, domain=DOMAIN)


QKV = ("query", "key", "value")


@pytest.mark.parametrize(
    "optional", [(), ("mask",), ("bias",), ("key_lengths",), ("mask", "bias", "key_lengths")]
)
def test_operands_by_name(optional: tuple[str, ...]) -> None:
    found = AttentionNode(node(*QKV, *optional))
    assert [(role, value.name) for role, value in found.operands()] == [
        (role, role) for role in (*QKV, *optional)
    ]
    for role in INPUTS:
        value = getattr(found, role)
        assert (None if value is None else value.name) == (
            role if role in (*QKV, *optional) else None
        )
    assert found.inputs == AttentionInputs(*(getattr(found, role) for role in INPUTS))


def test_fields_are_the_contracts_inputs_in_its_order() -> None:
    assert AttentionInputs._fields == INPUTS


def test_attributes() -> None:
    found = AttentionNode(node(*QKV))
    assert found.attributes == AttentionAttributes(4, 2, 0.5, "none")
    causal = AttentionNode(node(*QKV, causal="lower_right"))
    assert causal.attributes == AttentionAttributes(4, 2, 0.5, "lower_right")


@pytest.mark.parametrize("role", ["mask", "bias", "key_lengths"])
def test_an_absent_operand_is_set(role: str) -> None:
    found = AttentionNode(node(*QKV))
    value = ir.Value(name="new")
    found.set_operand(role, value)
    assert [(r, v.name) for r, v in found.operands()] == [(r, r) for r in QKV] + [(role, "new")]
    assert [role_at(*use) for use in value.uses()] == [role]
    found.set_operand(role, None)
    assert [r for r, _ in found.operands()] == list(QKV)


def test_changes_are_the_nodes_own() -> None:
    made = node(*QKV, causal="upper_left")
    found = AttentionNode(made)
    found.set_scale(0.25)
    found.set_kv_num_heads(1)
    found.set_causal("none")
    assert AttentionNode(made).attributes == AttentionAttributes(4, 1, 0.25, "none")


def test_emitting() -> None:
    made = values()
    build = GraphBuilder()
    inputs = AttentionInputs(made["query"], made["key"], made["value"], bias=made["bias"])
    found = AttentionNode.emit(
        build, inputs, AttentionAttributes(2, 1, 0.5, "upper_left"), captured="pattern"
    )
    assert list(build.nodes) == [found.node]
    assert found.inputs == inputs
    assert len(found.node.inputs) == 5  # nothing behind the bias
    assert found.attributes == AttentionAttributes(2, 1, 0.5, "upper_left")
    assert found.captured == "pattern"
    assert found.output is found.node.outputs[0]
    again = AttentionNode.emit(build, inputs, found.attributes)
    assert again.node is not found.node
    assert again.captured is None


def test_equal_attentions_are_never_shared() -> None:
    build = GraphBuilder(share=True)
    made = values()
    inputs = AttentionInputs(made["query"], made["key"], made["value"])
    nodes = {AttentionNode.emit(build, inputs, AttentionAttributes(2, 2, 1.0)).node for _ in "ab"}
    assert len(nodes) == 2


def test_site_and_module() -> None:
    made = node(*QKV)
    found = AttentionNode(made)
    assert (found.site, found.module, found.captured) == ("", "", None)
    made.name = "node_7"
    assert found.site == "node_7"
    made.metadata_props.update({SITE: "encoder#2", MODULE: "encoder", CAPTURED: "pattern"})
    assert (found.site, found.module, found.captured) == ("encoder#2", "encoder", "pattern")


@pytest.mark.parametrize(("name", "domain"), [(NAME, ""), ("Attention", ""), ("Other", DOMAIN)])
def test_other_nodes_are_refused(name: str, domain: str) -> None:
    other = ir.node(name, [ir.Value(name="x")], domain=domain)
    assert not is_attention(other)
    assert role_at(other, 0) is None
    with pytest.raises(ValueError, match=r"is no crossfuse.FusedAttention"):
        AttentionNode(other)


def test_a_graph_may_change_while_its_attentions_are_visited() -> None:
    first, second = node(*QKV), node(*QKV)
    between = ir.node("Neg", [first.outputs[0]])
    graph = ir.Graph([], [second.outputs[0]], nodes=[first, between, second], name="g")
    assert list(attention_nodes(graph)) == [first, second]
    for found in attentions(graph):
        graph.insert_before(found.node, [ir.node("Neg", [found.query])])
    assert [found.node for found in attentions(graph)] == [first, second]
