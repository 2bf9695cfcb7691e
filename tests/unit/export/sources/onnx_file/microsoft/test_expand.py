"""Which operators are replaced, which are refused, and in what words."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from crossfuse.errors import InputError
from crossfuse.export.passes.raise_opset import opset_of
from crossfuse.export.sources.onnx_file.microsoft.emit import DOMAIN
from crossfuse.export.sources.onnx_file.microsoft.expand import (
    ATTENTION_OPSET,
    expand_microsoft,
    has_microsoft,
    needs_attention_opset,
    own_strays,
)
from onnx_building import Graph, normal
from unit.export.sources.onnx_file.microsoft.expanding import expanded

W = 8


def graph(*kinds: str, opset: int = 17) -> ir.Model:
    """A chain of operators of one input."""
    x = value = ir.val("x", dtype=ir.DataType.FLOAT, shape=["batch", "length", W])
    nodes = []
    for i, kind in enumerate(kinds):
        domain = "" if kind == "Relu" else DOMAIN
        nodes.append(ir.node(kind, [value], domain=domain, name=f"node_{i}"))
        value = nodes[-1].outputs[0]
        value.name = f"v{i}"
    value.type = x.type
    made = ir.Graph([x], [value], nodes=nodes, opset_imports={"": opset, DOMAIN: 1}, name="g")
    return ir.Model(made, ir_version=9)


def test_what_is_replaced_keeps_names_shapes_and_notes() -> None:
    model = graph("Relu", "Gelu", "Relu")
    model.graph[1].metadata_props["crossfuse.module"] = "layers.0"
    assert has_microsoft(model)
    changed, modified = expand_microsoft(model)
    assert changed is model
    assert modified
    assert not has_microsoft(model)
    assert [(node.domain, node.op_type) for node in model.graph] == [
        ("", "Relu"),
        ("", "Gelu"),
        ("", "Relu"),
    ]
    assert model.graph[1].outputs[0].name == "v1"
    assert model.graph[1].metadata_props["crossfuse.module"] == "layers.0"
    assert expand_microsoft(model) == (model, False)


def test_an_output_that_is_its_own_result_stays_one() -> None:
    model = graph("Gelu")
    expand_microsoft(model)
    assert [value.name for value in model.graph.outputs] == ["v0"]


def test_all_refusals_come_in_one_message() -> None:
    model = graph("PackedAttention", "QAttention", "QAttention", "Gelu")
    with pytest.raises(InputError) as caught:
        expand_microsoft(model)
    said = str(caught.value)
    assert "PackedAttention at node_0 (its batch is packed without padding)" in said
    assert "QAttention at node_1 and 1 more (it is quantised as a whole)" in said


def test_layouts_for_one_machine_are_refused() -> None:
    model = graph("Relu", "Relu")
    model.graph[0].domain = "com.microsoft.nchwc"
    with pytest.raises(InputError, match=r"laid out for one machine \(1 times\)"):
        expand_microsoft(model)


def test_shapes_that_never_become_known_are_told() -> None:
    model = graph("BiasSplitGelu")
    model.graph[0].resize_inputs(2)
    model.graph[0].replace_input_with(1, model.graph.inputs[0])
    model.graph.inputs[0].shape = None
    with pytest.raises(
        InputError, match="BiasSplitGelu at node_0 .the shape of its inputs is unknown"
    ):
        expand_microsoft(model)


def test_operators_that_are_not_known_stay() -> None:
    model = graph("SurelyNew")
    assert expand_microsoft(model) == (model, False)
    assert has_microsoft(model)


@pytest.mark.parametrize(("opset", "stray"), [(16, True), (17, False)])
def test_norms_that_onnx_lacks_at_an_opset_are_the_runtimes(opset: int, stray: bool) -> None:
    model = graph("Relu", opset=opset)
    model.graph[0].op_type = "LayerNormalization"
    assert own_strays(model, opset) == stray
    assert model.graph[0].domain == (DOMAIN if stray else "")


def test_attentions_raise_the_opset_and_norms_do_not(tmp_path: Path) -> None:
    assert not needs_attention_opset(graph("Gelu"))
    assert needs_attention_opset(graph("MultiHeadAttention"))
    g = Graph()
    for name in "qkv":
        g.input(name, ["batch", f"length_{name}" if name == "q" else "keys", W])
    g.op("Identity", g.microsoft("MultiHeadAttention", "q", "k", "v", num_heads=2), outputs=["y"])
    g.output("y", ["batch", "l", W])
    assert opset_of(expanded(g, tmp_path)) == ATTENTION_OPSET
    plain = Graph()
    plain.input("x", ["batch", W])
    plain.op("Identity", plain.microsoft("BiasGelu", "x", plain.weight(normal(W))), outputs=["y"])
    plain.output("y", ["batch", W])
    (tmp_path / "plain").mkdir()
    assert opset_of(expanded(plain, tmp_path / "plain")) < ATTENTION_OPSET
