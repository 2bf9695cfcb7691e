"""Counting in files: every attention once, wherever it stands and whatever becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import crossfuse
from crossfuse import FusionError, runtime
from crossfuse.export.capture.onnx_census import graph_census, nested_attentions
from crossfuse.export.sources.onnx_file.load import load_onnx
from onnx_building import BOOL, FLOAT, Graph, attention, normal

W = 8


def written(g: Graph, q: str, k: str, *, normal_by: str = "Softmax", out: str | None = None) -> str:
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))
    weights = g.op(normal_by, scores, **({"axis": -1} if normal_by == "Softmax" else {}))
    return g.op("MatMul", weights, k, outputs=[out] if out else ())


def plain() -> Graph:
    g = Graph()
    g.input("x", ["b", "n", W])
    g.input("y", ["b", "m", W])
    return g


def test_many_without_names(tmp_path: Path) -> None:
    """Twenty-three attentions whose nodes have no names, some of them the very same: twenty-three
    rows, all fused."""
    g = plain()
    x = "x"
    for i in range(11):
        x = g.op("Add", written(g, x, x), written(g, x, "y"))
        x = g.op("Mul", x, g.weight(np.float32(0.5 + i / 20)))
    written(g, "x", "y", out="z")
    g.op("Add", x, "z", outputs=["out"])
    g.output("out", ["b", "n", W])
    for node in g.nodes:
        node.ClearField("name")
    bundle = crossfuse.export(g.save(tmp_path / "many.onnx"), tmp_path / "b")
    assert len(bundle.ledger) == 23
    assert bundle.ledger.counts("ort-cpu") == {"self": 11, "cross": 12}


def branching(g: Graph, condition: str) -> None:
    """An attention in both branches."""
    branches = []
    for i, factor in enumerate((1.0, 2.0)):
        inner = Graph()
        inner.scope = f"branch{i}/"
        inner.nodes = []
        q = inner.op("Mul", "x", f"f{i}", outputs=[f"q{i}"])
        kt = inner.op("Transpose", "y", outputs=[f"kt{i}"], perm=[0, 2, 1])
        s = inner.op(
            "Softmax", inner.op("MatMul", q, kt, outputs=[f"s{i}"]), outputs=[f"p{i}"], axis=-1
        )
        inner.op("MatMul", s, "y", outputs=[f"o{i}"])
        made = helper.make_tensor_value_info(f"o{i}", FLOAT, ["b", "n", W])
        branches.append(helper.make_graph(inner.nodes, f"branch{i}", [], [made]))
        g.weights.append(onnx.numpy_helper.from_array(np.float32(factor), f"f{i}"))
    g.op("If", condition, outputs=["out"], then_branch=branches[0], else_branch=branches[1])
    g.output("out", ["b", "n", W])


def test_in_branches(tmp_path: Path) -> None:
    """Counted, and missed for that reason; one whose condition is constant is fused."""
    g = plain()
    g.input("flag", [], BOOL)
    branching(g, "flag")
    path = g.save(tmp_path / "if.onnx")
    model = load_onnx(Path(path))
    assert [(s.form, s.normal) for s in graph_census(model)] == [("products", True)] * 2
    assert sorted(nested_attentions(model)) == [("branch0", "If"), ("branch1", "If")]
    with pytest.raises(FusionError, match="2 of 2 .*inside the body of If, where no target fuses"):
        crossfuse.export(path, tmp_path / "b")


def test_branch_of_a_constant(tmp_path: Path) -> None:
    """``If`` over a size that is known, as PyTorch's older exporter writes ``squeeze``."""
    g = plain()
    size = g.op("Gather", g.op("Shape", "x"), g.weight(2, np.int64))
    branching(g, g.op("Equal", size, g.weight(W + 1, np.int64)))
    bundle = crossfuse.export(g.save(tmp_path / "if.onnx"), tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {"cross": 1}
    feeds = {"x": normal(2, 4, W), "y": normal(2, 6, W, seed=1)}
    with runtime.load(bundle.path) as session:
        expected = attention(2 * feeds["x"], feeds["y"], feeds["y"], 1, scale=1.0)
        np.testing.assert_allclose(session.run(**feeds)["out"], expected, atol=1e-5)


def test_in_a_function(tmp_path: Path) -> None:
    """A local function that is called three times is three attentions."""
    inner = Graph()
    written(inner, "q", "k", out="o")
    g = plain()
    a = g.op("Block", "x", "x", domain="own")
    b = g.op("Block", a, "y", domain="own")
    g.op("Block", b, b, domain="own", outputs=["out"])
    g.output("out", ["b", "n", W])
    graph = helper.make_graph(g.nodes, "g", g.inputs, g.outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Block", ["q", "k"], ["o"], inner.nodes, [opsets[0]])
    path = tmp_path / "functions.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9),
        str(path),
    )
    bundle = crossfuse.export(str(path), tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {"self": 2, "cross": 1}


def test_what_counts() -> None:
    """Learned queries do where a softmax follows; products of weights, and linear ways, do not."""

    def count(build: str) -> int:
        g = plain()
        if build == "learned":
            scores = g.op("MatMul", g.weight(normal(3, W)), g.op("Transpose", "y", perm=[0, 2, 1]))
            out = g.op("MatMul", g.op("Softmax", scores, axis=-1), "y")
        elif build == "mixer":
            hidden = g.op(
                "Relu",
                g.op("MatMul", g.weight(normal(3, W)), g.op("Transpose", "y", perm=[0, 2, 1])),
            )
            out = g.op("MatMul", hidden, "y")
        elif build == "linear":
            out = written(g, "x", "y", normal_by="Identity")
        elif build == "gated":
            out = written(g, "x", "y", normal_by="Sigmoid")
        else:
            scores = g.op("MatMul", "x", g.weight(normal(W, 5)))
            out = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.weight(normal(5, W)))
        g.op("Identity", out, outputs=["out"])
        g.output("out", ["o0", "o1", "o2"])
        graph = helper.make_graph(g.nodes, "g", g.inputs, g.outputs, g.weights)
        model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
        from onnx_ir.passes.common import ShapeInferencePass

        ShapeInferencePass()(model)
        return len(graph_census(model))

    assert {b: count(b) for b in ("learned", "mixer", "linear", "gated", "weights")} == {
        "learned": 1,
        "mixer": 0,
        "linear": 0,
        "gated": 1,
        "weights": 0,
    }
