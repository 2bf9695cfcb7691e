"""Stages cast together: one dtype at each tensor that they hand over."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.errors import InputError
from crossfuse.targets.precision.stages import half_stages, search_islands
from onnx_text import parse


def graphs() -> dict[str, ir.Model]:
    """The context hands over a product, and a softmax, which stays in fp32."""
    return {
        "context": parse(
            """(float[b, 4] image) => (float[b, 4] keys, float[b, 4] shares) {
                 keys = MatMul(image, w) shares = Softmax(keys) }""",
            w=np.eye(4),
        ),
        "query": parse(
            """(float[b, 4] text, float[b, 4] keys, float[b, 4] shares) => (float[b, 4] y) {
                 a = Mul(text, keys) y = Mul(a, shares) }"""
        ),
    }


def dtypes(model: ir.Model) -> dict[str | None, str]:
    ends = (*model.graph.inputs, *model.graph.outputs)
    return {v.name: v.dtype.name for v in ends if v.dtype is not None}


def test_the_boundary_stays_in_fp32_unless_asked() -> None:
    cast = half_stages(graphs(), "fp16")
    assert cast.boundary == {}
    for model in cast.graphs.values():
        assert set(dtypes(model).values()) == {"FLOAT"}


def test_what_is_computed_in_half_is_handed_over_in_half() -> None:
    cast = half_stages(graphs(), "bf16", half_handover=True)
    assert cast.boundary == {"keys": "bfloat16"}
    context, query = (dtypes(cast.graphs[stage]) for stage in ("context", "query"))
    assert context == {"image": "FLOAT", "keys": "BFLOAT16", "shares": "FLOAT"}
    assert query == {"text": "FLOAT", "keys": "BFLOAT16", "shares": "FLOAT", "y": "FLOAT"}
    assert list(cast.kept.values()) == ["Softmax loses too much in half precision"]


def test_inputs_and_outputs_in_half() -> None:
    cast = half_stages(graphs(), "fp16", half_io=["text", "y"])
    assert cast.boundary == {"text": "float16", "y": "float16"}
    assert dtypes(cast.graphs["query"])["text"] == "FLOAT16"


def test_mixed_is_fp16_with_islands() -> None:
    asked = {"n0": "asked"}
    cast = half_stages(graphs(), "mixed", keep=asked, half_handover=True)
    assert cast.boundary == {}, "the product that makes the keys stays in fp32"
    assert asked.items() <= cast.kept.items()


def test_operators_without_a_kernel_stay_in_bf16_alone() -> None:
    kept = {
        precision: set(half_stages(graphs(), precision, without_bf16=["MatMul"]).kept.values())
        for precision in ("fp16", "bf16")
    }
    assert kept["bf16"] - kept["fp16"] == {"the target has no bf16 kernel for MatMul"}


def test_another_precision_is_refused() -> None:
    with pytest.raises(InputError, match="no half precision of that name.*int8"):
        half_stages(graphs(), "int8")


def test_the_search_asks_about_stages() -> None:
    """Parity is told to hold at once: nothing is kept, and all stages were asked about."""
    asked: list[set[str]] = []
    said: list[str] = []

    def passes(stages: object) -> bool:
        asked.append(set(stages))  # type: ignore[call-overload]
        return True

    model = graphs()["context"]
    points = [{"image": np.ones((1, 4), np.float32)}]
    assert search_islands(model, graphs(), points, passes, progress=said.append) == {}
    assert asked == [{"context", "query"}]
    assert said == ["mixed: trial 1 of at most 12: 0 nodes asked to stay in fp32"]
