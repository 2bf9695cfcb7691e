"""Simplified graphs: what onnxscript's own optimizer makes of them, and in how many looks."""

from __future__ import annotations

from types import SimpleNamespace

import onnx_ir as ir
import pytest
from onnxscript import optimizer, rewriter

from crossfuse.export.capture import simplify as simplifying
from crossfuse.export.capture.simplify import simplify

GRAPH = """<ir_version: 10, opset_import: ["": 20]>
agraph (float[n, 8] x) => (float[n, 8] y, float[n, 4] z)
<float one = {1}, float zero = {0}, int64[1] start = {0}, int64[1] half = {4}, int64[1] end = {8},
 int64[1] last = {1}, int64[2] shape = {-1, 8}>
{
    a = Mul (x, one)
    b = Add (zero, a)
    c = Transpose <perm = [1, 0]> (b)
    d = Transpose <perm = [1, 0]> (c)
    e = Cast <to = 1> (d)
    f = Reshape (e, shape)
    g = Slice (x, start, half, last)
    h = Slice (x, half, end, last)
    z = Mul (g, h)
    j = Concat <axis = 1> (h, g)
    y = Add (j, f)
}"""


def graph() -> ir.Model:
    return ir.from_onnx_text(GRAPH)


def operators(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


def test_as_onnxscript_does() -> None:
    ours, theirs = graph(), graph()
    simplify(ours)
    optimizer.optimize_ir(theirs)
    assert operators(ours) == operators(theirs)
    assert len(operators(ours)) < len(operators(graph()))
    assert [v.name for v in ours.graph.outputs] == ["y", "z"]


def test_rules_are_tried_where_they_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, str]] = []
    match = rewriter.pattern.RewriteRule.match

    def watched(self: object, model: object, where: object, node: ir.Node, **options: object):  # type: ignore[no-untyped-def]
        tried.append((str(self), node.op_type))
        return match(self, model, where, node, **options)

    monkeypatch.setattr(rewriter.pattern.RewriteRule, "match", watched)
    simplify(graph())
    named = [(rule, operator) for rule, operator in tried if rule != "Anonymous Rule"]
    assert ("TransposeTranspose", "Transpose") in named
    assert {operator for rule, operator in named if rule == "TransposeTranspose"} == {"Transpose"}
    assert 0 < sum(rule == "SlicesSplit" for rule, _ in named) <= 4


def test_without_its_list_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplifying, "rewriter", SimpleNamespace())
    model = graph()
    simplify(model)
    assert len(operators(model)) < len(operators(graph()))
