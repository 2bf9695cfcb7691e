"""Stages quantised together, and what stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossfuse.targets.quantize.rewrite import RoundedWeights
from crossfuse.targets.quantize.stages import quantize_stages, sites_of
from onnx_building import normal
from onnx_text import parse


def graphs() -> dict[str, ir.Model]:
    return {
        "query": parse(
            """(float[b, 32] x) => (float[b, 3] y) {
                 h = MatMul(x, w) s = Tanh(h) g = MatMul(s, v) y = MatMul(g, narrow) }""",
            w=normal(32, 32),
            v=normal(32, 32, seed=1),
            narrow=normal(32, 3),
        ),
        "step": parse(
            "(float[b, 32] x) => (float[b, 32] y) { h = MatMul(x, w) y = Tanh(h) }",
            w=normal(32, 32),
        ),
    }


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if "MatMul" in node.op_type]


def test_a_step_has_weights_in_blocks_and_rules_hold() -> None:
    before, made = graphs(), RoundedWeights()
    found = quantize_stages(before, "int8", sites_of(before["query"]), made=made)
    assert kinds(found.graphs["query"]) == ["MatMulInteger", "MatMulInteger", "MatMul"]
    assert kinds(found.graphs["step"]) == ["MatMulNBits"]
    assert kinds(before["query"]) == ["MatMul"] * 3, "what is given stays as it is"
    assert [(one.site, one.stage) for one in found.layers] == [
        ("n0", "query"), ("n2", "query"), ("n3", "query"), ("n0", "step"),
    ]  # fmt: skip
    narrow = found.layers[2]
    assert narrow.weights is None
    assert narrow.refusal is not None
    assert not narrow.refusal.asked
    assert (len(made.channels), len(made.blocks)) == (2, 1)


def test_what_is_kept_stays_in_all_stages() -> None:
    before = graphs()
    found = quantize_stages(before, "mixed-int8", sites_of(before["query"]), keep={"n0": "asked"})
    assert kinds(found.graphs["query"]) == ["MatMul", "MatMulInteger", "MatMul"]
    assert kinds(found.graphs["step"]) == ["MatMul"]
    kept = [one.refusal for one in found.layers if one.site == "n0"]
    assert [(one.reason, one.asked) for one in kept if one] == [("asked", False)] * 2


def test_int4_is_weights_in_every_stage() -> None:
    before = graphs()
    found = quantize_stages(before, "int4", sites_of(before["query"]))
    assert kinds(found.graphs["query"]) == ["MatMulNBits", "MatMulNBits", "MatMul"]
    bits = {
        node.attributes["bits"].as_int()
        for model in found.graphs.values()
        for node in model.graph
        if node.op_type == "MatMulNBits"
    }
    assert bits == {4}
    assert all(np.prod(one.shape) for one in found.layers)
