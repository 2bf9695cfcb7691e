"""What linear layers became, by listings as the builder prints them, and by its own of graphs in
which the number of each kind is known."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from crossfuse.core.linear_ledger import FP8, INT8, Became, weights_in
from crossfuse.core.target import TARGETS
from crossfuse.core.tensorrt_layers import Layer, read_layers
from crossfuse.core.tensorrt_linears import linear_types
from crossfuse.targets.quantize.codes import Codes
from crossfuse.targets.quantize.half_rest import half_rest
from crossfuse.targets.quantize.rules import quantizable
from crossfuse.targets.quantize.stages import quantize_stages, sites_of
from crossfuse.targets.quantize.static_plan import static_plan
from crossfuse.targets.quantize.symmetric_products import dequantized_weights
from crossfuse.targets.tensorrt.build_engine import BuilderOptions, build_engine
from crossfuse.targets.tensorrt.lowering import lower_tensorrt
from onnx_building import normal
from onnx_text import parse

RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (pip install 'crossfuse[rtx]')",
)
N = 32


def line(name: str, kind: str, inputs: str, constants: str, *nodes: str) -> str:
    """A layer of a listing; tensors as ``TYPE[SIZES]``, separated by blanks."""

    def tensors(text: str) -> str:
        parts = [one.partition("[") for one in text.split()]
        return ", ".join(
            f"{{ Name: t, Dimensions: [{dims} Strides: [1], Datatype: {dtype}, Format: (Linear) }}"
            for dtype, _, dims in ((a, b, c.replace("]", "],")) for a, b, c in parts)
        )

    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}_myl0_3, LayerType: {kind}, Inputs: [ {tensors(inputs)}], Constants: "
        f"[ {tensors(constants)}], Outputs: [ {tensors('Half[2]')}], TacticName: t, StreamId: 0, "
        f"Metadata: {metadata}"
    )


SCALARS = " Float[1] Float[1]"
CASES = [
    (line("A", "gemm", "Int8[-1,8]", "Int8[8,8]" + SCALARS, "A", "A:given"), INT8),
    (line("A", "gemm", "FP8[-1,8]", "FP8[8,8]" + SCALARS, "A"), FP8),
    (line("A", "correlation", "Int8[-1,4,8,8]", "Int8[8,4,3,3] Float[1,8,1,1]", "A"), INT8),
    (line("A", "gemm", "Half[-1,8]", "Half[8,8]" + SCALARS, "A"), "fp16"),
    (line("A", "gemm", "BFloat16[-1,8]", "BFloat16[8,8]", "A"), "bf16"),
    (line("A", "deconv", "Float[-1,4,8,8]", "Float[4,8,2,2]", "A"), "fp32"),
    (line("__myl_FcAddTanhCast", "runtime_fusion", "Half[-1,8]", "Half[8,8]", "A"), "fp16"),
    (
        line("__myl_CastMulCastFc", "runtime_fusion", "Half[-1,8]", "Half[1,8] Int8[8,8]", "A"),
        weights_in(8, "fp16"),
    ),
    (
        line("__myl_CastMulCastFc", "runtime_fusion", "Half[-1,8]", "FP8[8,8]", "A"),
        "weights fp8, computed in fp16",
    ),
    (line("A", "gemm", "Int8[-1,8] Half[8,8]", SCALARS, "A"), "fp16"),
    (line("__myl_ReplConc", "kgen", "Int8[-1,8]", "", "A"), None),
    (line("_gemm_mha_v2", "kgen", "Half[-1,8]", "Half[8,8]", "A"), None),
    (line("B", "gemm", "Int8[-1,8]", "Int8[8,8]", "B"), None),
    (line("A", "gemm", "", "", "A"), None),
]


@pytest.mark.parametrize(("text", "words"), CASES)
def test_the_operands_of_the_layer_that_multiplies_count(text: str, words: str | None) -> None:
    helpers = [
        line("__myl_MulAdd", "kgen", "Half[-1,8]", "Half[1,8]", "A", "A:given"),
        line("__myl_CastMulMinMaxRounCast", "kgen", "Half[-1,8]", "Float[1]", "A:codes"),
    ]
    layers = read_layers(["\n".join(["Layers:", helpers[0], text, helpers[1]])])
    found = linear_types(layers, {"A": "A:weights"})
    assert found == ({} if words is None else {"A": Became(words)})


def test_weights_that_another_layer_widens_and_the_worst_of_several_profiles() -> None:
    apart = line("__myl_CastMul", "kgen", "", "Int8[8,8]", "A:weights")
    product = line("A", "gemm", "Half[-1,8] Half[8,8]", "", "A")
    one = linear_types(read_layers([f"Layers:\n{apart}\n{product}"]), {"A": "A:weights"})
    assert one == {"A": Became(weights_in(8, "fp16"))}
    two = [Layer("A", "gemm", ("A",), ("int8",), ("int8",)), Layer("A", "gemm", ("A",), ("fp16",))]
    assert linear_types(two, {"A": None}) == {"A": Became("fp16")}


def test_types_as_tensorrt_itself_writes_them() -> None:
    """In other words, and with the place of a tensor."""
    text = (
        "Layers:\nName: A_myl0_1, LayerType: gemm, Inputs: [ { Name: x, Location: Device, "
        "Dimensions: [-1,8], Format/Datatype: Row major Int8 format }, { Name: w, Dimensions: "
        "[8,8], Format/Datatype: Int8 }], Outputs: [ { Name: y, Dimensions: [-1,8], "
        "Format/Datatype: Half }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: A]"
    )
    (layer,) = read_layers([text])
    assert (layer.inputs, layer.constants) == (("int8", "int8"), ())
    assert linear_types([layer], {"A": None}) == {"A": Became(INT8)}


def graph(codes: Codes, kinds: str) -> tuple[ir.Model, dict[str, str | None]]:
    """A chain of layers, a letter each: quantised, weights alone, or kept; and their products."""
    steps = " ".join(
        f"m{i} = MatMul(h{i}, w{i}) a{i} = Add(m{i}, b) h{i + 1} = Tanh(a{i})"
        for i in range(len(kinds))
    )
    text = (
        f"(float[n, {N}] x) => (float[n, {N}] y) {{ h0 = Relu(x) {steps} y = Neg(h{len(kinds)}) }}"
    )
    weights = {f"w{i}": normal(N, N, seed=i) / 6 for i in range(len(kinds))}
    model = parse(text, **weights, b=normal(N))
    keys = [layer.key for layer in quantizable(model, codes)]
    points = [{"x": normal(9, N, seed=50)}]
    plan = static_plan(model, keys, points, qdq=True, codes=codes)
    keep = {key: "asked" for key, kind in zip(keys, kinds, strict=True) if kind == "k"}
    precision = "fp8" if codes is Codes.FP8 else "int8"
    stages = quantize_stages({"model": model}, precision, sites_of(model), keep=keep, static=plan)
    found = stages.graphs["model"]
    by_name = {node.name: node for node in found.graph}
    for key, kind in zip(keys, kinds, strict=True):
        if kind == "w":
            given = by_name[f"{key}:given"]
            source = given.inputs[0].producer().inputs[0]  # type: ignore[union-attr]
            by_name[key].replace_input_with(0, source)
    half = half_rest(stages.graphs, TARGETS["tensorrt-rtx"], {}, set(keys))
    products = {k: None if k in keep else dequantized_weights(k) for k in keys}
    return half.graphs["model"], products


@RTX
@pytest.mark.parametrize(
    ("codes", "kinds", "sms"),
    [
        (Codes.INT8, "qwkqq", ("8.0", "8.6", "8.9", "12.0")),
        pytest.param(Codes.FP8, "qkqw", ("8.9", "12.0"), marks=pytest.mark.slow),
        pytest.param(Codes.INT8, "www", ("7.5",), marks=pytest.mark.slow),
        pytest.param(Codes.INT8, "kk", ("8.9",), marks=pytest.mark.slow),
    ],
)
def test_a_known_number_of_each(
    codes: Codes, kinds: str, sms: tuple[str, ...], tmp_path: Path
) -> None:
    """By the log of TensorRT-RTX: what is quantised, and nothing else."""
    model, products = graph(codes, kinds)
    engine = build_engine(
        "tensorrt-rtx",
        "model",
        lower_tensorrt(model),
        tmp_path / "model.plan",
        [{"x": ((1, N), (4, N), (16, N))}],
        BuilderOptions(sms),
    )
    words = {
        "q": FP8 if codes is Codes.FP8 else INT8,
        "w": "weights fp8, computed in fp16" if codes is Codes.FP8 else weights_in(8, "fp16"),
        "k": "fp16",
    }
    found = linear_types(engine.layers, products)
    assert [found[key].words for key in products] == [words[kind] for kind in kinds]
    assert Counter(one.words for one in found.values()) == Counter(words[k] for k in kinds)
