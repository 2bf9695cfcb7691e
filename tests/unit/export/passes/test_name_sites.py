"""Attention nodes carry the names of their modules."""

from __future__ import annotations

import pytest

from crossfuse.export.passes.name_sites import NameSitesPass, site_name
from crossfuse.graph.attention_node import attention_nodes
from crossfuse.graph.metadata import MODULE, SITE
from onnx_building import Graph
from small_graphs import applied, fused, model_of


def test_sites_are_paths_in_order_of_execution() -> None:
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    outs = []
    for _ in range(4):
        x = fused(g, x, x, x)
        outs.append(x)
    g.op("Identity", x, outputs=["y"])
    g.output("y", ["B", "L", 8])
    model = model_of(g, shapes={o: ["B", "L", 8] for o in outs})
    for node, path in zip(attention_nodes(model.graph), ["a.b", "", "a.b", "c"], strict=True):
        node.metadata_props[MODULE] = path
    assert applied(NameSitesPass(), model).modified
    nodes = list(attention_nodes(model.graph))
    assert [node.name for node in nodes] == ["a.b", "(root)", "a.b#2", "c"]
    assert [node.metadata_props[SITE] for node in nodes] == [node.name for node in nodes]


def test_no_other_node_has_an_attentions_name() -> None:
    """Bodies of translated operators are inlined with the names of their nodes."""
    g = Graph()
    x = g.input("x", ["B", "L", 8])
    out = fused(g, x, x, x)
    g.op("Identity", g.op("Neg", out), outputs=["y"])
    g.output("y", ["B", "L", 8])
    model = model_of(g, shapes={out: ["B", "L", 8]})
    attention, *others = list(model.graph)
    attention.metadata_props[MODULE] = "n3"
    for node, name in zip(others, ["n3", "n3:Neg"], strict=True):
        node.name = name
    assert applied(NameSitesPass(), model).modified
    assert [node.name for node in model.graph] == ["n3", "n3:Neg_", "n3:Neg"]


def test_nothing_to_name() -> None:
    g = Graph()
    g.op("Neg", g.input("x", ["B"]), outputs=["y"])
    g.output("y", ["B"])
    assert not NameSitesPass()(model_of(g)).modified


@pytest.mark.parametrize(
    ("path", "occurrence", "site"), [("", 1, "(root)"), ("", 2, "(root)#2"), ("a", 1, "a")]
)
def test_names(path: str, occurrence: int, site: str) -> None:
    assert site_name(path, occurrence) == site
