"""Grids by layer: what is given to several has one grid; what a stage has under another name is
found by its weights."""

from __future__ import annotations

import numpy as np

from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.static_plan import StaticPlan, static_plan
from onnx_building import normal
from onnx_text import parse

TEXT = """(float[b, 24] x) => (float[b, 24] y) {
            p = MatMul(x, w) q = MatMul(x, v) s = Add(p, q) t = MatMul(s, w) y = Tanh(t) }"""
WEIGHTS = {"w": normal(24, 24, seed=1), "v": normal(24, 24, seed=2)}


def test_layers_of_one_value_have_one_grid() -> None:
    model = parse(TEXT, **WEIGHTS)
    layers = linear_layers(model)
    x = normal(7, 24, seed=3)
    x[:, 4] *= 500
    plan = static_plan(model, [one.key for one in layers], [{"x": x}], qdq=True)
    first, second, third = (plan.of(one) for one in layers)
    assert first is not None
    assert third is not None
    assert first == second
    assert first.given.scaling, "a channel is far larger than the others"
    assert third.given != first.given
    renamed = parse(TEXT.replace("s = Add(p, q)", "s = Identity(p)"), **WEIGHTS)
    for node in renamed.graph:
        node.name = f"other_{node.name}"
    found = plan.of(linear_layers(renamed)[2])
    assert found is not None
    assert found.given.step >= third.given.step, "it covers what all layers of these weights get"


def test_what_was_not_seen_has_no_grid() -> None:
    model = parse(TEXT, **WEIGHTS)
    layers = linear_layers(model)
    keys = [one.key for one in layers]
    assert StaticPlan(qdq=False).of(layers[0]) is None
    assert static_plan(model, [], [], qdq=False) == StaticPlan(qdq=False)
    broken = static_plan(model, keys, [{"x": np.full((1, 24), np.inf, np.float32)}], qdq=False)
    assert [broken.of(one) for one in layers] == [None] * 3
