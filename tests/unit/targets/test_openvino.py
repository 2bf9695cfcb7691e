"""The lowering for OpenVINO, as OpenVINO executes it: numbers against the float64 reference, and
one kernel for every attention."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.target import TARGETS
from crossfuse.ops.reference import attention_reference
from crossfuse.runtime.openvino_stage import OpenVinoStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import StageRequest
from crossfuse.targets.openvino import lower_openvino
from crossfuse.targets.precision.cast import cast_graph
from graphs_for_tests import Case
from onnx_text import parse
from unit.targets.test_lowering import MASKS, SHAPES, USES

TOLERANCE = {"fp32": 3e-6, "bf16": 4e-2}
ONE_OF_EACH = [
    Case(mask=True),
    Case(bias=True, mask_batch="k", mask_heads=True),
    Case(lengths=True, causal="upper_left", heads=4, kv_heads=2, value_size=6),
    Case(fan_out=3, mask=True, mask_batch="q", known_shapes=False),
    Case(contexts=1, length=1, keys=1, causal="lower_right"),
]


def check(case: Case, folder: Path, precision: str = "fp32") -> None:
    model = case.model() if precision == "fp32" else cast_graph(case.model(), precision).model
    lowered = lower_openvino(model)
    assert lowered.kernels == {"site": "Attention"}
    (folder / "g.onnx").write_bytes(ir.to_proto(lowered.model).SerializeToString())
    (node,) = [node for node in lowered.model.graph if node.op_type == "Attention"]
    one = SessionOptions(threads=1)
    request = StageRequest(TARGETS["openvino"], folder / "g.onnx", one, precision=precision)
    stage = OpenVinoStage(request)
    inputs = case.inputs()
    expected = attention_reference(**inputs, **case.attributes)
    (got,) = stage.run(inputs)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[precision], err_msg=f"{case}")
    kernels, reasons = stage.attentions({"site": str(node.outputs[0].name)})
    assert kernels == {"site": f"Subgraph ({precision})"}, (case, reasons)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=range(len(ONE_OF_EACH)))
def test_each_option(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("causal", ["none", "upper_left", "lower_right"])
@pytest.mark.parametrize("use", USES, ids=lambda u: "+".join(u) or "plain")
def test_grid(precision: str, causal: str, use: dict[str, bool], tmp_path: Path) -> None:
    for shape, known in itertools.product(SHAPES, (True, False)):
        masks = MASKS if use.get("mask") or use.get("bias") else [{}]
        for i, mask in enumerate(masks[::5]):
            if known or i % 3 == 0:
                case = Case(**shape, **use, **mask, causal=causal, known_shapes=known)
                check(case, tmp_path, precision)


def test_a_bias_of_the_lowest_number_keeps_its_key(tmp_path: Path) -> None:
    """A row of it averages the values, as eager does."""
    case = Case(bias=True, mask_rows=False)
    inputs = case.inputs()
    inputs["bias"] = np.full_like(inputs["bias"], np.finfo(np.float32).min)
    lowered = lower_openvino(case.model())
    (tmp_path / "g.onnx").write_bytes(ir.to_proto(lowered.model).SerializeToString())
    stage = OpenVinoStage(
        StageRequest(TARGETS["openvino"], tmp_path / "g.onnx", SessionOptions(threads=1))
    )
    means = inputs["value"].mean(axis=1, keepdims=True).repeat(case.length, 1)
    np.testing.assert_allclose(stage.run(inputs)[0], means, atol=3e-6)


def test_norms_of_bf16_are_one_kernel_that_computes_in_fp32(tmp_path: Path) -> None:
    """Numbers that lie 300 times their deviation from 0: their squares in bf16 would tell nothing
    of the variance."""
    size = 256
    rng = np.random.default_rng(0)
    fp32 = parse(
        f"""(float[b, {size}] x) => (float[b, {size}] y) {{
              y = LayerNormalization <axis = -1> (x, scale, bias) }}""",
        scale=rng.uniform(0.5, 1.5, size),
        bias=rng.standard_normal(size),
    )
    model = cast_graph(fp32, "bf16").model
    lowered = lower_openvino(model).model
    path = tmp_path / "g.onnx"
    ir.save(lowered, path)
    request = StageRequest(TARGETS["openvino"], path, SessionOptions(threads=1), precision="bf16")
    stage = OpenVinoStage(request)
    kinds = [node.kind for node in stage._nodes()]
    assert kinds.count("MVN") == 1
    x = (300 + rng.integers(-4, 5, (7, size)) * 2).astype(np.float32)
    (got,) = stage.run({"x": x})
    wide = x.astype(np.float64)
    normed = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    named = {
        name: value.const_value.numpy().astype(np.float64)
        for name, value in model.graph.initializers.items()
    }
    expected = normed * named["scale.bfloat16"] + named["bias.bfloat16"]
    np.testing.assert_allclose(got, expected, atol=3e-2)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < 3e-3


@pytest.mark.parametrize(
    ("operator", "axis", "keepdims"), [("ArgMin", -1, 0), ("ArgMax", 1, 1), ("ArgMax", 0, 0)]
)
@pytest.mark.parametrize("dtype", ["FLOAT", "BFLOAT16"])
def test_indices_of_extremes_are_reductions(
    operator: str, axis: int, keepdims: int, dtype: str, tmp_path: Path
) -> None:
    """Of equal numbers, of which there are many here, the first one counts."""
    shape = [5, 3]
    shape.insert(axis % 3, 70)
    model = parse(
        f"""(float[{", ".join(map(str, shape))}] x) => (int64[a, b{", c" * keepdims}] y) {{
              doubled = Add(x, x)
              given = Cast <to = {int(ir.DataType[dtype])}> (doubled)
              y = {operator} <axis = {axis}, keepdims = {keepdims}> (given) }}"""
    )
    lowered = lower_openvino(model).model
    assert operator not in {node.op_type for node in lowered.graph}
    path = tmp_path / "g.onnx"
    ir.save(lowered, path)
    request = StageRequest(TARGETS["openvino"], path, SessionOptions(threads=1))
    stage = OpenVinoStage(request)
    x = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)
    (got,) = stage.run({"x": x})
    expected = (np.argmin if operator == "ArgMin" else np.argmax)(x, axis, keepdims=bool(keepdims))
    np.testing.assert_array_equal(got, expected)
    x[0, 0, 0] = np.nan
    (got,) = stage.run({"x": x})
    assert got.min() >= 0
    assert got.max() < 70


@pytest.mark.parametrize(
    "node",
    [
        "ArgMax <axis = -1, keepdims = 0> (x)",
        "ArgMax <axis = 0, keepdims = 0, select_last_index = 1> (x)",
        "ArgMin <axis = 1, keepdims = 0> (x)",
    ],
)
def test_indices_of_the_last_of_few_or_of_unknown_numbers_stay(node: str) -> None:
    model = parse(f"(float[70, n, 8] x) => (int64[a, b] y) {{ y = {node} }}")
    lowered = lower_openvino(model).model
    assert [one.op_type for one in lowered.graph] == [node.split()[0]]
