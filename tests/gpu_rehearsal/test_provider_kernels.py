"""Which kernel the CUDA provider runs for each attention: what its own log says, against what the
ledger and the rules say."""

from __future__ import annotations

import ctypes
import itertools
import shutil

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from crossfuse.targets.cuda.kernels import Form, kernel_text, runs
from crossfuse.targets.cuda.lowering import lower_ort_cuda
from crossfuse.targets.precision.cast import cast_graph
from gpu_rehearsal import build_standins
from gpu_rehearsal.build_standins import missing_for_provider
from gpu_rehearsal.provider import CAPABILITIES, GRID, Job, Provider, kernels_promised
from graphs_for_tests import Case

PRECISIONS = ("fp32", "fp16", "bf16")
HALF = ("fp16", "bf16")
WIDE = dict(size=64, value_size=64)
CASES = {
    "plain": Case(**WIDE),
    "lengths": Case(**WIDE, lengths=True),
    "fan-out": Case(**WIDE, fan_out=3),
    "fan-out, lengths": Case(**WIDE, fan_out=3, lengths=True),
    "grouped": Case(**WIDE, heads=4),
    "grouped, lengths": Case(**WIDE, heads=4, kv_heads=1, lengths=True),
    "head size 44": Case(size=44, value_size=44),
    "head size 4": Case(),
    "value size": Case(size=64, value_size=40),
    "unknown shapes": Case(**WIDE, known_shapes=False),
    "grouped, value size": Case(size=64, value_size=32, heads=4),
    "upper-left": Case(**WIDE, causal="upper_left"),
}
MASKED = {
    "mask": Case(**WIDE, mask=True),
    "mask per query": Case(**WIDE, mask=True, mask_batch="q", fan_out=3),
    "mask of keys": Case(**WIDE, mask=True, mask_batch="k", mask_rows=False),
    "mask per head": Case(**WIDE, mask=True, mask_heads=True),
    "bias": Case(**WIDE, bias=True),
    "all": Case(**WIDE, heads=4, mask=True, bias=True, lengths=True, causal="lower_right"),
    "lower-right": Case(**WIDE, causal="lower_right"),
    "grouped, value size, mask": Case(size=40, value_size=64, heads=4, mask=True),
    "head size 44, mask": Case(size=44, value_size=20, mask=True),
    "unknown shapes, mask": Case(**WIDE, mask=True, mask_heads=True, known_shapes=False),
}


def in_precision(model: ir.Model, precision: str) -> ir.Model:
    """The graph with inputs and outputs in the precision too."""
    if precision == "fp32":
        return model
    ends = [v.name or "" for v in (*model.graph.inputs, *model.graph.outputs)]
    return cast_graph(model, precision, boundary=ends).model


def check(provider: Provider, capability: str, precision: str, grid: tuple[int, ...]) -> None:
    cases = CASES | MASKED
    lowered = {
        name: lower_ort_cuda(in_precision(case.model(), precision)) for name, case in cases.items()
    }
    lengths = list(itertools.product(grid, grid))
    jobs = []
    for name, case in cases.items():
        sizes = {"B": case.contexts, "Bq": case.contexts * case.fan_out, "Bk": case.contexts}
        at = [sizes | {"L": queries, "S": keys} for queries, keys in lengths]
        # Without names, every axis has one size, that of the batch and heads too.
        jobs.append(Job(lowered[name].model, at if case.known_shapes else [{"": 1}, {"": 2}]))
    for (name, case), result in zip(cases.items(), provider.run(jobs, capability), strict=True):
        where = f"{name}, {precision}, {capability}"
        assert "failed" not in result, f"{where}: {result['failed']}"
        assert (result["on_cpu"], result["to_host"]) == ([], 0), where
        promised = lowered[name].kernels["site"]
        for run in result["runs"]:
            assert run["error"] is None, f"{where}: {run}"
            queries, keys = run["sizes"].get("L", 1) * case.fan_out, run["sizes"].get("S", 1)
            assert run["kernels"] == [kernels_promised(promised, queries, keys)], f"{where}: {run}"
            if name in MASKED or precision == "fp32":
                assert run["kernels"] == ["efficient"], f"{where}: {run}"
            elif name != "upper-left":
                assert run["kernels"] == ["flash"], f"{where}: {run}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_form_has_a_fused_kernel_at_every_length(provider: Provider, precision: str) -> None:
    """No masks or lengths: flash in half precision, memory-efficient in fp32; masks:
    memory-efficient at least."""
    check(provider, "8.0", precision, (1, 7, 8, 12, 257, 300))


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_form_on_every_device(provider: Provider, precision: str, capability: str) -> None:
    check(provider, capability, precision, GRID)


def attention(form: Form, precision: str) -> ir.Model:
    """A bare ``Attention`` node of that form; a mask has a batch of 1."""
    assert form.size is not None
    assert form.value_size is not None
    dtype = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[
        precision
    ]
    kv = 2 if form.grouped else 4
    shapes = {
        "q": ["B", "L", 4 * form.size],
        "k": ["B", "S", kv * form.size],
        "v": ["B", "S", kv * form.value_size],
    }
    if form.masked:
        shapes["m"] = [1, 1, "L", "S"]
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("o", dtype, ["B", "L", 4 * form.value_size])
    node = helper.make_node(
        "Attention",
        list(shapes),
        ["o"],
        q_num_heads=4,
        kv_num_heads=kv,
        scale=0.3,
        is_causal=int(form.causal),
    )
    graph = helper.make_graph([node], "g", inputs, [output])
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    )


def forms() -> list[Form]:
    sizes = [
        (8, 8),
        (64, 64),
        (256, 256),
        (264, 264),
        (512, 512),
        (44, 44),
        (20, 20),
        (64, 32),
        (32, 64),
        (64, 44),
    ]
    return [
        Form(half, size, value_size, grouped, masked, causal)
        for size, value_size in sizes
        for half in (True, False)
        for grouped, masked, causal in (
            (0, 0, 0),
            (1, 0, 0),
            (0, 1, 0),
            (0, 0, 1),
            (1, 1, 0),
            (1, 0, 1),
        )
    ]


@pytest.mark.parametrize(
    "capability",
    ["9.0", *(pytest.param(c, marks=pytest.mark.slow) for c in CAPABILITIES if c != "9.0")],
)
def test_rules_are_the_providers(provider: Provider, capability: str) -> None:
    """`kernels.runs` for forms that lowering avoids too: what is not fused is known as such."""
    lengths = list(itertools.product((1, 8, 12, 32, 257), repeat=2))
    at = [{"B": 2, "L": queries, "S": keys} for queries, keys in lengths]
    asked = [
        (form, precision) for form in forms() for precision in (HALF if form.half else ("fp32",))
    ]
    results = provider.run(
        [Job(attention(form, precision), at) for form, precision in asked], capability
    )
    for (form, precision), result in zip(asked, results, strict=True):
        assert "failed" not in result, f"{form} {precision}: {result}"
        for run, (queries, keys) in zip(result["runs"], lengths, strict=True):
            assert run["error"] is None, f"{form} {precision}: {run}"
            assert run["kernels"] == [runs(form, queries, keys)], f"{form} {precision}: {run}"


def test_words_say_what_the_rules_say() -> None:
    assert kernel_text(Form(True, 64, 64), padded=True) == "flash"
    assert (
        kernel_text(Form(True, 64, 64, causal=True), padded=True)
        == "flash; efficient where queries and keys differ in number"
    )
    assert kernel_text(Form(True, 64, 64, causal=True, square=True), padded=True) == "flash"
    assert kernel_text(Form(False, 64, 64, grouped=True), padded=True) is None
    assert kernel_text(Form(True, 44, 44), padded=True) is None
    assert kernel_text(Form(True, None, 64), padded=True) is None
    assert kernel_text(Form(True, 64, 64, masked=True), padded=False) == (
        "efficient; math where the number of keys is no multiple of 4"
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_stand_in_device_is_laid_out_as_its_readers_expect(
    provider: Provider, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peer: the structure as cuda-bindings reads it."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    monkeypatch.setenv("CUDA_STANDIN_CAPABILITY", capability)
    device = runtime.cudaDeviceProp()
    library = ctypes.CDLL(str(provider.libraries / "libcudart.so.13"))
    assert library.cudaGetDeviceProperties(ctypes.c_void_p(device.getPtr()), 0) == 0
    assert f"{device.major}.{device.minor}" == capability
    assert (device.warpSize, device.maxThreadsPerBlock, device.concurrentKernels) == (32, 1024, 1)
    assert (
        device.sharedMemPerBlockOptin
        == (227 if capability == "9.0" else 163 if capability == "8.0" else 99) * 1024
    )
    assert (device.maxBlocksPerMultiProcessor, device.reservedSharedMemPerBlock) == (32, 1024)


def test_without_a_compiler_the_rehearsal_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert missing_for_provider() == "there is no C compiler (cc) on this machine"
    monkeypatch.setattr(build_standins, "provider_library", lambda: None)
    assert missing_for_provider() == "the installed ONNX Runtime has no CUDA provider for Linux"


def test_convolutions_get_a_plan(provider: Provider) -> None:
    """The provider's cuDNN frontend builds an execution plan over the stand-in, for each new
    shape."""
    jobs = []
    for op, weights, groups in (
        ("Conv", [8, 4, 3, 3], 1),
        ("Conv", [4, 1, 3, 3], 4),
        ("ConvTranspose", [4, 4, 3, 3], 1),
    ):
        for dtype in (TensorProto.FLOAT, TensorProto.FLOAT16):
            node = helper.make_node(op, ["x", "w"], ["y"], group=groups, strides=[2, 2])
            inputs = [
                helper.make_tensor_value_info("x", dtype, ["B", 4, "H", "W"]),
                helper.make_tensor_value_info("w", dtype, weights),
            ]
            graph = helper.make_graph(
                [node], "g", inputs, [helper.make_tensor_value_info("y", dtype, [None] * 4)]
            )
            model = helper.make_model(
                graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11
            )
            onnx.checker.check_model(model)
            jobs.append(Job(ir.from_proto(model), [{"B": b, "H": 9, "W": 16} for b in (1, 2, 1)]))
    for result in provider.run(jobs):
        assert result["on_cpu"] == []
        assert [run["error"] for run in result["runs"]] == [None] * 3
