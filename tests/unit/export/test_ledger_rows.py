"""Rows of the ledger: nodes matched with what the census saw."""

from __future__ import annotations

import onnx_ir as ir
from torch import nn

from crossfuse.export.capture.census import Sighting
from crossfuse.export.ledger_rows import open_ledger, where_joined
from crossfuse.export.passes.base import Missed
from crossfuse.export.passes.name_sites import NameSitesPass
from crossfuse.graph.attention_node import attention_nodes
from crossfuse.graph.metadata import CAPTURED, MODULE
from onnx_building import Graph
from small_graphs import fused, model_of


def graph(*paths: str) -> ir.Model:
    """One attention per path: ``[B, L, 8]`` over ``[B, S, 4]``, grouped, with smaller values."""
    g = Graph()
    x, y, v = g.input("x", ["B", "L", 8]), g.input("y", ["B", "S", 4]), g.input("v", ["B", "S", 6])
    outs = [fused(g, x, y, v, heads=4, kv_num_heads=2) for _ in paths]
    for out in outs:
        g.output(out, ["B", "L", 12])
    model = model_of(g)
    for node, path in zip(attention_nodes(model.graph), paths, strict=True):
        node.metadata_props[MODULE] = path
    NameSitesPass()(model)
    return model


def module(*names: str) -> nn.Module:
    made = nn.Module()
    for name in names:
        made.add_module(name, nn.Identity())
    return made


def test_a_row_says_what_the_node_is() -> None:
    (row,) = open_ledger(graph("a"), module("a"), [Sighting("a", "sdpa")]).rows
    assert (row.site, row.kind, row.captured) == ("a", "cross", "sdpa")
    assert (row.num_heads, row.kv_num_heads, row.head_size, row.value_size) == (4, 2, 2, 3)
    assert (row.query_inputs, row.key_inputs) == (("x",), ("y", "v"))


def test_how_each_was_captured() -> None:
    model = graph("a", "b", "c", "d")
    (*_, last) = attention_nodes(model.graph)
    last.metadata_props[CAPTURED] = "pattern"
    sightings = [
        Sighting(p, f)
        for p, f in zip("abcd", ("operator", "sdpa", "sdpa", "products"), strict=True)
    ]
    ledger = open_ledger(model, module(*"abcd"), sightings, interfaced=["b"])
    assert [row.captured for row in ledger.rows] == ["operator", "interface", "sdpa", "pattern"]


def test_what_no_pass_captured_has_a_row_with_the_reason() -> None:
    sightings = [
        Sighting("a", "sdpa"),
        Sighting("a", "products", ("softmax",)),
        Sighting("b", "sdpa"),
    ]
    missed = [Missed("a", "its scores are an output"), Missed("other", "not this one's")]
    rows = open_ledger(graph("a"), module("a", "b"), sightings, missed).rows
    assert [(row.site, row.kind) for row in rows] == [
        ("a", "cross"),
        ("a#2", "unknown"),
        ("b", "unknown"),
    ]
    assert rows[0].reasons == {}
    assert rows[1].reasons == {"capture": "its scores are an output"}
    assert rows[2].reasons["capture"]


def test_a_module_under_two_names_has_one() -> None:
    shared = module("a")
    shared.add_module("again", shared.get_submodule("a"))
    rows = open_ledger(graph("again"), shared, [Sighting("a", "sdpa")]).rows
    assert len(rows) == 1  # the census knows the first name, and nothing is missing


def test_attentions_that_are_computed_as_fewer_have_a_row_of_what_there_is() -> None:
    sightings = [Sighting("a.one", "products", ("softmax",)), Sighting("a", "products"),
                 Sighting("ab", "products", ("softmax",))]  # fmt: skip
    joined = where_joined(sightings, {"a"})
    assert [sighting.module for sighting in joined] == ["a", "a", "ab"]
    (row,) = open_ledger(graph("a"), module("a"), joined[:2], joined={"a"}).rows
    assert (row.site, row.kind) == ("a", "cross")
    missed = [Missed("a", "its scores are an output")]
    rows = open_ledger(graph("a"), module("a"), joined[:2], missed, joined={"a"}).rows
    assert [row.kind for row in rows] == ["cross", "unknown"]
    rows = open_ledger(graph("b"), module("a", "b"), joined[:2], joined={"a"}).rows
    assert [row.kind for row in rows] == ["cross", "unknown", "unknown"]
