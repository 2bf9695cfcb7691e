"""A graph says no more about its origin than modules, sites and ranges."""

from __future__ import annotations

from crossfuse.export.passes.strip_metadata import StripMetadataPass
from crossfuse.graph.metadata import CAPTURED, MODULE, RANGE, SCOPES, SITE
from onnx_building import Graph, normal
from small_graphs import applied, model_of

SECRET = "/home/someone/private/model.py"


def test_what_stays_and_what_goes() -> None:
    g = Graph()
    x = g.input("x", ["B", 4])
    g.op("Add", x, g.weight(normal(4)), outputs=["y"])
    g.output("y", ["B", 4])
    model = model_of(g)
    (node,) = list(model.graph)
    items = [model, model.graph, node, *node.outputs, *model.graph.initializers.values()]
    for item in (*items, model.graph.inputs[0]):
        item.doc_string = SECRET
        item.metadata_props["pkg.torch.stack_trace"] = SECRET
    node.metadata_props.update({SCOPES: "['', 'encoder.layers.0', 'add']", CAPTURED: "pattern"})
    node.metadata_props[SITE] = "somewhere"
    model.graph.inputs[0].metadata_props[RANGE] = "0:9"
    assert applied(StripMetadataPass(), model).modified
    assert dict(node.metadata_props) == {MODULE: "encoder.layers.0", SITE: "somewhere"}
    assert dict(model.graph.inputs[0].metadata_props) == {RANGE: "0:9"}
    for item in (*items, model.graph.inputs[0]):
        assert not item.doc_string
        assert SECRET not in str(dict(item.metadata_props))


def test_nothing_to_strip() -> None:
    g = Graph()
    g.op("Neg", g.input("x", ["B"]), outputs=["y"])
    g.output("y", ["B"])
    model = model_of(g)
    next(iter(model.graph)).metadata_props[MODULE] = "a"
    assert not StripMetadataPass()(model).modified
