"""Paths of modules are read off the names that exporters give to nodes."""

from __future__ import annotations

import pytest

from crossfuse.export.passes.note_modules import NoteModulesPass
from crossfuse.graph.metadata import MODULE, SCOPES, module_path
from onnx_building import Graph
from small_graphs import model_of


@pytest.mark.parametrize(
    ("name", "operator", "path"),
    [
        ("/encoder/layer.0/MatMul_1", "MatMul", "encoder.layer.0"),
        ("model/encoder/MatMul_1", "MatMul", "model.encoder"),
        ("model/attention/einsum_1/Einsum", "Einsum", "model.attention"),
        ("StatefulPartitionedCall/model/dense/Add", "Add", "model.dense"),
        ("MatMul_7", "MatMul", ""),
        ("", "MatMul", ""),
    ],
)
def test_names(name: str, operator: str, path: str) -> None:
    g = Graph()
    g.op("Neg", g.input("x", ["B"]), outputs=["y"])
    g.output("y", ["B"])
    model = model_of(g)
    (node,) = list(model.graph)
    node.name, node.op_type = name, operator
    assert NoteModulesPass()(model).modified
    assert module_path(node) == path
    assert not NoteModulesPass()(model).modified


def test_what_an_exporter_wrote_stays() -> None:
    g = Graph()
    x = g.input("x", ["B"])
    g.op("Neg", g.op("Abs", x), outputs=["y"])
    g.output("y", ["B"])
    model = model_of(g)
    first, second = model.graph
    first.name = second.name = "wrong/path/Op"
    first.metadata_props[SCOPES] = "['', 'right', 'abs']"
    second.metadata_props[MODULE] = "right too"
    assert not NoteModulesPass()(model).modified
    assert [module_path(node) for node in (first, second)] == ["right", "right too"]
