"""Products of floats are in bf16 beside integer ones, where a model chooses inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.openvino_linears import WIDE_FLOATS
from crossfuse.core.target import TARGETS
from crossfuse.runtime.openvino_stage import OpenVinoStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import StageRequest
from crossfuse.targets.openvino import lower_openvino
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.quantize.half_products import half_products
from onnx_building import INT64, Graph, normal
from onnx_text import node_of
from small_graphs import computed, fused, model_of

HALF, WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def graph() -> ir.Model:
    """Codes chosen by a product; a product of integers; convolutions and an attention of floats."""
    g = Graph()
    x, sound = g.input("x", ["B", 16]), g.input("sound", ["B", 8, "N"])
    scores = g.op("MatMul", x, g.weight(normal(16, 70)))
    g.op("ArgMin", scores, outputs=["code"], axis=1, keepdims=0)
    step, zero = g.weight(np.float32(0.05)), g.weight(np.uint8(128))
    given = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero), step, zero)
    integers = np.random.default_rng(0).integers(-20, 20, (16, 8)).astype(np.int8)
    widened = g.op("DequantizeLinear", g.weight(integers), step, g.weight(np.int8(0)))
    row = g.op("Unsqueeze", g.op("MatMul", given, widened), g.ints(1))
    first = g.op("Conv", sound, g.weight(normal(8, 8, 1)))
    gated = g.op("Mul", first, g.op("Sigmoid", first))
    second = g.op("Conv", gated, g.weight(normal(8, 8, 1, seed=1)))
    tokens = g.op("Transpose", second, perm=[0, 2, 1])
    attended = fused(g, tokens, tokens, tokens)
    g.op("Add", attended, row, outputs=["y"])
    g.output("y", ["B", "N", 8])
    g.output("code", ["B"], INT64)
    return model_of(g, shapes={attended: ["B", "N", 8]})


def types(model: ir.Model) -> dict[str, list[ir.DataType | None]]:
    found: dict[str, list[ir.DataType | None]] = {}
    for node in model.graph:
        if node.op_type not in ("Cast", "Constant"):
            given = [value.dtype for value in node.inputs if value is not None]
            found.setdefault(node.op_type, []).append(given[0])
    return found


def test_products_of_floats_and_what_is_between_them() -> None:
    before = graph()
    found = half_products({"model": before}).graphs["model"]
    seen = types(found)
    assert seen["Conv"] == [HALF, HALF]
    assert seen["Sigmoid"] == seen["Mul"] == [HALF]
    assert seen["Transpose"] == [HALF]
    assert seen["FusedAttention"] == [HALF]
    assert seen["MatMul"] == [WIDE, WIDE], "one decides, the other is of integers"
    assert seen["ArgMin"] == seen["QuantizeLinear"] == seen["Add"] == [WIDE]
    assert seen["Unsqueeze"] == [WIDE], "a layout beside the integers is no product"
    assert [value.dtype for value in found.graph.outputs] == [WIDE, ir.DataType.INT64]
    assert types(before)["Conv"] == [WIDE, WIDE], "what is given stays as it is"


@pytest.mark.parametrize("fed", ["attended", "first"])
def test_what_others_take_too_stays(fed: str) -> None:
    """Behind the gate's second use it is no longer between products."""
    model = graph()
    add, gate = node_of(model, "Add"), node_of(model, "Sigmoid")
    row = node_of(model, "Unsqueeze")
    value = gate.outputs[0] if fed == "first" else node_of(model, "FusedAttention").outputs[0]
    shaped = ir.node("ReduceMax", [value], attributes={"keepdims": 1})
    shaped.outputs[0].type = ir.TensorType(WIDE)
    model.graph.insert_before(add, shaped)
    add.replace_input_with(1, shaped.outputs[0])
    model.graph.remove(row, safe=True)
    seen = types(half_products({"model": model}).graphs["model"])
    assert seen["Conv"] == [HALF, HALF]
    assert seen["Sigmoid"] == ([WIDE] if fed == "first" else [HALF])
    assert seen["ReduceMax"] == [WIDE]


def test_a_graph_whose_floats_may_all_be_stays() -> None:
    model = graph()
    model.metadata_props[WIDE_FLOATS] = "bf16"
    assert half_products({"model": model}).graphs == {"model": model}


def test_openvino_computes_each_in_its_type(tmp_path: Path) -> None:
    model = graph()
    given = {"x": normal(3, 16), "sound": normal(3, 8, 5)}
    lowered = lower_openvino(half_products({"model": model}).graphs["model"]).model
    path = tmp_path / "g.onnx"
    ir.save(lowered, path)
    request = StageRequest(TARGETS["openvino"], path, SessionOptions(threads=1), precision="int8")
    stage = OpenVinoStage(request)
    made = {node.kind: node.dtype for node in stage._nodes()}
    assert made["Convolution"] == "bf16"
    names = {value.name: i for i, value in enumerate(lowered.graph.outputs)}
    got = stage.run(given)
    y, code = got[names["y"]], got[names["code"]]
    expected, codes = computed(model, {name: array.astype(float) for name, array in given.items()})
    np.testing.assert_array_equal(code, codes)
    error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 2e-2


def block(*, norm: bool = True) -> ir.Model:
    """What a transformer repeats: a sum over layers, normed, and what two layers add to it."""
    g = Graph()
    stream = g.input("x", ["B", "N", 8])
    for layer in range(2):
        given = stream
        if norm:
            given = g.op("LayerNormalization", stream, g.weight(np.ones(8, "f")), axis=-1)
        first = g.op("Add", g.weight(normal(16)), g.op("MatMul", given, g.weight(normal(8, 16))))
        product = g.op("MatMul", g.op("Relu", first), g.weight(normal(16, 8, seed=layer)))
        second = g.op("Add", product, g.weight(normal(8)))
        stream = g.op("Add", stream, g.op("Mul", second, g.weight(normal(8))))
    g.op("Neg", stream, outputs=["y"])
    g.output("y", ["B", "N", 8])
    return model_of(g)


def test_sums_that_norms_are_given_stay() -> None:
    found = half_products({"model": block()}).graphs["model"]
    seen = types(found)
    assert seen["LayerNormalization"] == [WIDE, WIDE]
    assert seen["MatMul"] == [HALF] * 4
    assert seen["Relu"] == [HALF, HALF]
    assert seen["Mul"] == [HALF, HALF], "a constant is applied with the layer's own bias"
    biases = [HALF, HALF, WIDE]
    assert seen["Add"] == biases * 2


def test_roundings_do_not_add_up_over_layers(tmp_path: Path) -> None:
    """The sum of all layers is as exact as one product of bf16, however many there are."""
    g = Graph()
    stream = g.input("x", ["B", "N", 64])
    for layer in range(40):
        normed = g.op("LayerNormalization", stream, g.weight(np.ones(64, "f")), axis=-1)
        weights = normal(64, 64, seed=layer) * np.float32(0.01)
        stream = g.op("Add", stream, g.op("MatMul", normed, g.weight(weights)))
    g.op("Neg", stream, outputs=["y"])
    g.output("y", ["B", "N", 64])
    model = model_of(g)
    given = {"x": normal(2, 3, 64)}
    (expected,) = computed(model, {"x": given["x"].astype(float)})

    def error(graph: ir.Model, name: str) -> float:
        path = tmp_path / name
        ir.save(lower_openvino(graph).model, path)
        one = SessionOptions(threads=1)
        stage = OpenVinoStage(StageRequest(TARGETS["openvino"], path, one, precision="bf16"))
        (got,) = stage.run(given)
        return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))

    ours = error(half_products({"model": model}).graphs["model"], "products.onnx")
    all_half = error(cast_graph(model, "bf16").model, "all.onnx")
    assert ours < 2e-3
    assert all_half > 3 * ours
