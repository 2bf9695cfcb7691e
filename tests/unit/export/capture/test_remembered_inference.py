"""Inference that is remembered: what onnxscript infers without, in fewer looks."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnxscript import optimizer

from crossfuse.export.capture import remembered_inference as remembering
from crossfuse.export.capture.remembered_inference import remembered_inference

LAYER = """
    a{i} = MatMul (x{i}, w)
    s{i} = Shape (a{i})
    b{i} = Reshape (a{i}, shape)
    c{i} = Transpose <perm = [0, 2, 1, 3]> (b{i})
    d{i} = ReduceMean <keepdims = 0> (c{i}, last)
    e{i} = Reshape (c{i}, back)
    x{j} = Add (x{i}, e{i})
"""
HEAD = """<ir_version: 10, opset_import: ["": 20]>
agraph (float[n, m, 8] x0, float[8, 8] w) => (x{n}, d0)
<int64[4] shape = {{0, 0, 2, 4}}, int64[1] last = {{-1}}, int64[3] back = {{0, -1, 8}}>
{{{body}}}"""


def graph(layers: int) -> ir.Model:
    body = "".join(LAYER.format(i=i, j=i + 1) for i in range(layers))
    return ir.from_onnx_text(HEAD.format(n=layers, body=body))


def known(model: ir.Model) -> list[str]:
    return [f"{v.name} {v.type} {v.shape}" for node in model.graph for v in node.outputs]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_as_without(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    infer = onnx.shape_inference.infer_node_outputs

    def watched(schema: onnx.defs.OpSchema, *args: object) -> object:
        asked.append(schema.name)
        return infer(schema, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx.shape_inference, "infer_node_outputs", watched)
    ours, theirs = graph(layers), graph(layers)
    with remembered_inference():
        optimizer.fold_constants_ir(ours, onnx_shape_inference=True)
    ours_asked = len(asked)
    optimizer.fold_constants_ir(theirs, onnx_shape_inference=True)
    assert known(ours) == known(theirs)
    assert any("2,4" in line.replace(" ", "") for line in known(ours)), "shapes are inferred"
    assert ours_asked <= 14 < len(asked) or layers < 3


def test_another_constant_is_another_node() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    agraph (float[6, n] x) => (y, z, u)
    <int64[2] one = {2, -1}, int64[2] two = {3, -1}, int64[3] three = {1, 6, -1}>
    {
        y = Reshape (x, one)
        z = Reshape (x, two)
        u = Reshape (x, three)
    }"""
    model = ir.from_onnx_text(text)
    with remembered_inference():
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    sizes = [tuple(v.shape)[:2] for v in model.graph.outputs if v.shape is not None]
    assert [size[0] for size in sizes] == [2, 3, 1]


def test_types_are_not_shared() -> None:
    model = graph(3)
    with remembered_inference():
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    kinds = [v.type for node in model.graph for v in node.outputs if v.type is not None]
    assert len({id(kind) for kind in kinds}) == len(kinds)


def test_another_onnxscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "optimizer", object())
    with remembered_inference():
        pass
