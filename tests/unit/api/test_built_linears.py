"""Which linear layers a build has a ledger of, and what the engine's words become in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossfuse.api.built_files import BuiltFiles
from crossfuse.api.built_linears import build_layers, built_linears
from crossfuse.core.linear_ledger import FP32, INT8, UNKNOWN, Became, weights_in
from crossfuse.core.target import require_target
from crossfuse.errors import QuantizationError
from crossfuse.targets.precision.stages import StageGraphs
from crossfuse.targets.quantize.rules import Refusal
from crossfuse.targets.quantize.stages import PlannedLayer
from onnx_building import normal
from onnx_text import parse

OPENVINO = require_target("openvino")


def layer(
    site: str, stage: str = "query", *, weights: str | None = None, refusal: Refusal | None = None
) -> PlannedLayer:
    return PlannedLayer(site, site, "MatMul", (9, 9), stage, weights, refusal, result=f"{site}:out")


def built(**told: dict[str, Became]) -> BuiltFiles:
    return BuiltFiles({"query": "q", "context": "c"}, frozenset(), {}, {}, linears=told)


def test_floats_are_told_as_the_engine_has_them(tmp_path: Path) -> None:
    model = parse("(float[b, 9] x) => (float[b, 9] y) { y = MatMul(x, w) }", w=normal(9, 9))
    kept = StageGraphs({}, {"n0": "it chooses"})
    (one,) = build_layers(OPENVINO, model, {"query": model}, kept, None)
    assert (one.site, one.result, one.shape) == ("n0", "y", (9, 9))
    assert one.refusal == Refusal("it chooses", asked=False)
    assert build_layers(require_target("ort-cpu"), model, {"query": model}, kept, None) == ()
    found = {"y": Became("fp32")}
    for precision, words in (("fp32", "fp32"), ("bf16", FP32)):
        ledger = built_linears(
            OPENVINO,
            precision,
            [one],
            {},
            built(query=found, context={}),
            tmp_path,
        )
        assert [(row.became, row.asked) for row in ledger] == [(words, False)]
    assert ledger[0].reason == "it chooses"
    assert np.prod(ledger[0].shape) == 81


def test_a_layer_that_is_not_in_integers_fails_by_name(tmp_path: Path) -> None:
    layers = [
        layer("a", weights="a:weights"),
        layer("b", weights="b:weights"),
        layer("c", weights="c:weights"),
        layer("d", refusal=Refusal("narrow", asked=False)),
        layer("e", weights="e:weights"),
        layer("f", refusal=Refusal("it is in the body of a Loop", asked=True)),
        layer("a", "context", weights="a:weights"),
    ]
    told = {
        "query": {
            "a:out": Became(INT8),
            "b:out": Became("fp32"),
            "c:out": Became(weights_in(8)),
            "d:out": Became("fp32"),
        },
        "context": {"a:out": Became("fp32")},
    }
    ledger = built_linears(OPENVINO, "int8", layers, {}, built(**told), tmp_path)
    assert {row.site: row.became for row in ledger} == {
        "a": f"query: {INT8}; context: {FP32}",
        "b": FP32,
        "c": weights_in(8),
        "d": FP32,
        "e": UNKNOWN,
        "f": FP32,
    }
    assert [row.site for row in ledger if row.missed] == ["a", "b", "c", "e", "f"]
    assert ledger[5].reason == "it is in the body of a Loop"
    with pytest.raises(QuantizationError, match=r"5 of 6 .* OpenVINO computes it in fp32"):
        ledger.require_quantized("openvino")


def test_an_engine_that_does_not_tell_has_proven_nothing(tmp_path: Path) -> None:
    layers, silent = [layer("a", weights="a:weights")], built(query={})
    assert not built_linears(OPENVINO, "fp32", layers, {}, silent, tmp_path)
    (row,) = built_linears(OPENVINO, "int8", layers, {}, silent, tmp_path)
    assert (row.became, row.missed) == (UNKNOWN, True)
    assert row.reason == "OpenVINO tells of no node for it"
