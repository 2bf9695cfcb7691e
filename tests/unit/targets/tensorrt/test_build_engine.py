"""TensorRT-RTX engines, built here without a GPU; the builder's own layers say what fused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.tape import Tape

import crossfuse
from coverage.cases import CASES
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.files import user_cache
from crossfuse.core.linear_ledger import FP8, INT8
from crossfuse.core.target import EngineLibrary, Target
from crossfuse.core.tensorrt_layers import attention_kernels, read_layers
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import EngineError, FusionError, InputError
from crossfuse.models.registry import ZOO
from crossfuse.targets.lowering import Lowered
from crossfuse.targets.precision.cast import HALF_TYPES, cast_graph
from crossfuse.targets.tensorrt import build_engine as engines
from crossfuse.targets.tensorrt.build_engine import BuilderOptions, Engine, build_engine
from crossfuse.targets.tensorrt.engine_cache import from_cache
from crossfuse.targets.tensorrt.lowering import lower_tensorrt
from crossfuse.targets.tensorrt.shape_profiles import input_shapes, parse_profile, profile_sizes
from graphs_for_tests import Case

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (pip install 'crossfuse[rtx]')",
)
SMS = ("8.0", "8.6", "8.9", "12.0")
BUILD = {"target": "tensorrt-rtx", "compute_capabilities": SMS}
QUICK = {("cross_modal_attention", "tiny")}


def is_fused(kernels: str | None) -> bool:
    """One kernel per stage that computes the attention, each of them TensorRT's fused one (the
    second for one query row)."""
    return bool(kernels) and all(
        k.startswith(("_gemm_mha_v", "_gemv_mha")) for k in str(kernels).split(", ")
    )


def build_case(lowered: Lowered, folder: Path, sms: tuple[str, ...] = ("8.9",)) -> Engine:
    """An engine of a graph of the grid: batches of 2 and 4, lengths from 1 to 64."""
    shapes = {}
    for value in lowered.model.graph.inputs:
        assert value.shape is not None
        sizes = [
            [d if isinstance(d, int) else (n, 2 * n, 8 * n)[i] for d, n in _axes(value)]
            for i in range(3)
        ]
        shapes[value.name or ""] = (tuple(sizes[0]), tuple(sizes[1]), tuple(sizes[2]))
    return build_engine(
        "tensorrt-rtx", "model", lowered, folder / "model.plan", [shapes], BuilderOptions(sms)
    )


def _axes(value: ir.Value) -> list[tuple[Any, int]]:
    assert value.shape is not None
    return [
        (
            d if isinstance(d, int) else d.value,
            2 if not isinstance(d, int) and d.value == "Bq" else 1,
        )
        for d in value.shape
    ]


GRID = [
    Case(size=16, value_size=16),
    Case(size=64, value_size=64, length=1),
    Case(size=8, value_size=8, mask=True),
    Case(size=20, value_size=20, mask=True, mask_batch="k", mask_rows=False),
    Case(size=16, value_size=24, bias=True, mask_heads=True),
    Case(size=16, value_size=8, lengths=True, causal="lower_right"),
    Case(size=16, value_size=16, causal="upper_left"),
    Case(size=16, value_size=16, heads=4, kv_heads=2, mask=True, lengths=True),
    Case(size=16, value_size=16, fan_out=2, mask=True, mask_batch="q"),
    Case(size=256, value_size=256, fan_out=2, lengths=True),
]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "case", GRID, ids=lambda c: f"D{c.size}-{c.value_size}-{c.causal}-G{c.fan_out}-{GRID.index(c)}"
)
def test_every_form_fuses(case: Case, precision: str, tmp_path: Path) -> None:
    lowered = lower_tensorrt(
        cast_graph(case.model(), precision, boundary=("query", "key", "value", "bias")).model
    )
    engine = build_case(lowered, tmp_path)
    assert set(engine.kernels) == {"site"}
    assert is_fused(engine.kernels["site"])
    assert not engine.reasons


@pytest.mark.parametrize(
    ("case", "precision", "why"),
    [
        (Case(size=264, value_size=264), "fp16", "head size 264"),
        (Case(size=16, value_size=16), "fp32", "fp32 attention"),
    ],
)
def test_what_can_not_fuse_is_named(case: Case, precision: str, why: str, tmp_path: Path) -> None:
    model = case.model() if precision == "fp32" else cast_graph(case.model(), precision).model
    engine = build_case(lower_tensorrt(model), tmp_path)
    assert not engine.kernels
    assert why in engine.reasons["site"]


def test_a_refusal_of_the_builder_is_attributed_to_the_site(tmp_path: Path) -> None:
    """Two attentions, one of which the lowering let through with a head size that the builder has
    no kernel for."""
    tape = Tape()
    half = ir.TensorType(HALF_TYPES["fp16"])
    q, k, v = (
        ir.Value(name=n, type=half, shape=ir.Shape(["B", s, 32]))
        for n, s in (("q", "L"), ("k", "S"), ("v", "S"))
    )
    good = tape.op(
        "Attention", [q, k, v], attributes={"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.25}
    )
    other = [tape.op("Mul", [x, x]) for x in (good, k, v)]
    bad = tape.op(
        "Attention", other, attributes={"q_num_heads": 4, "kv_num_heads": 4, "scale": 0.25}
    )
    for value, name in ((good, "good"), (bad, "bad")):
        node = value.producer()
        assert node is not None
        node.name = name
    bad.name, bad.type, bad.shape = "out", half, q.shape
    model = ir.Model(
        ir.Graph([q, k, v], [bad], nodes=tape.nodes, opset_imports={"": 23}, name="g"),
        ir_version=10,
    )
    said: list[str] = []
    engine = build_engine(
        "tensorrt-rtx",
        "model",
        Lowered(model, {"good": "Attention", "bad": "Attention"}, {}),
        tmp_path / "model.plan",
        [dict.fromkeys("qkv", ((1, 1, 32), (2, 4, 32), (4, 16, 32)))],
        BuilderOptions(("8.9",)),
        progress=said.append,
    )
    assert set(engine.kernels) == {"good"}
    assert "took it apart" in engine.reasons["bad"]
    assert any("no fused kernel; finding out which" in text for text in said)


@pytest.mark.parametrize("depends", [False, True])
def test_engines_are_built_to_be_captured_where_their_shapes_allow_it(
    tmp_path: Path, depends: bool
) -> None:
    """TensorRT-RTX captures no CUDA graph of an engine that allocates memory while it is executed,
    and refuses to build one without where shapes that depend on values need it; such an engine is
    built all the same."""
    tape = Tape()
    half = ir.TensorType(HALF_TYPES["fp16"])
    q, k, v = (ir.Value(name=n, type=half, shape=ir.Shape(["B", "S", 32])) for n in "qkv")
    out = tape.op(
        "Attention", [q, k, v], attributes={"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.25}
    )
    node = out.producer()
    assert node is not None
    node.name = "attention"
    if depends:
        count = tape.op(
            "Cast",
            [tape.op("ReduceMax", [out], attributes={"keepdims": 0})],
            attributes={"to": ir.DataType.INT64},
        )
        zero, one = (
            tape.op("Constant", [], attributes={"value": ir.tensor(np.array(n, np.int64))})
            for n in (0, 1)
        )
        out = tape.op(
            "Cast", [tape.op("Range", [zero, count, one])], attributes={"to": HALF_TYPES["fp16"]}
        )
    out.name, out.type, out.shape = "out", half, ir.Shape(["n"]) if depends else q.shape
    model = ir.Model(
        ir.Graph([q, k, v], [out], nodes=tape.nodes, opset_imports={"": 23}, name="g"),
        ir_version=10,
    )
    engine = build_engine(
        "tensorrt-rtx",
        "model",
        Lowered(model, {"attention": "Attention"}, {}),
        tmp_path / "model.plan",
        [dict.fromkeys("qkv", ((1, 1, 32), (2, 4, 32), (4, 16, 32)))],
        BuilderOptions(("8.9",)),
    )
    assert set(engine.kernels) == {"attention"}


def test_the_ledger_reader_counts_exactly_what_is_fused(tmp_path: Path) -> None:
    """Five attentions in primitives: two plain ones fuse; Dv ≠ D, probabilities as an output, and
    fp32 do not."""
    tape = Tape()
    half, single = ir.TensorType(ir.DataType.FLOAT16), ir.TensorType(ir.DataType.FLOAT)
    inputs, outputs, sites = [], [], []

    def given(name: str, kind: ir.TensorType, *shape: int) -> ir.Value:
        inputs.append(ir.Value(name=name, type=kind, shape=ir.Shape(shape)))
        return inputs[-1]

    def end(value: ir.Value, name: str, kind: ir.TensorType, *shape: int) -> None:
        value.name, value.type, value.shape = name, kind, ir.Shape(shape)
        outputs.append(value)

    for name, kind, width in (
        ("a", half, 64),
        ("b", half, 64),
        ("wide", half, 32),
        ("probs", half, 64),
        ("fp32", single, 64),
    ):
        q, k = given(f"{name}.q", kind, 2, 4, 128, 64), given(f"{name}.k", kind, 2, 4, 64, 128)
        v = given(f"{name}.v", kind, 2, 4, 128, width)
        scores = tape.op("MatMul", [q, k])
        weights = tape.op("Softmax", [scores], attributes={"axis": -1})
        node = weights.producer()
        assert node is not None
        node.name = name
        sites.append(name)
        end(tape.op("MatMul", [weights, v]), f"{name}.out", kind, 2, 4, 128, width)
        if name == "probs":
            end(weights, "probs.weights", kind, 2, 4, 128, 128)
    graph = ir.Graph(inputs, outputs, nodes=tape.nodes, opset_imports={"": 23}, name="g")
    lowered = Lowered(ir.Model(graph, ir_version=10), dict.fromkeys(sites, ""), {})
    shapes = {v.name or "": (tuple(v.shape.numpy()),) * 3 for v in inputs if v.shape is not None}
    engine = build_engine(
        "tensorrt-rtx", "model", lowered, tmp_path / "p", [shapes], BuilderOptions(("8.9",))
    )  # type: ignore[list-item]
    assert set(engine.kernels) == {"a", "b"}
    assert set(engine.reasons) == {"wide", "probs", "fp32"}


def test_layers_are_told_from_names_in_inputs_and_helpers() -> None:
    listing = (
        "Layers:\n"
        "Name: __myl_TranReshMove_myl0_8, LayerType: kgen, Inputs: [ { Name: _gemm_mha_v2_in }], "
        "TacticName: x, StreamId: 0, "
        "Metadata: [ONNX Layer: a.b#2]\n"
        "Name: _gemm_mha_v2_myl0_9, LayerType: kgen, Inputs: [ { Name: x }], TacticName: y, "
        "StreamId: 0, "
        "Metadata: [ONNX Layer: a.b#2][ONNX Layer: other]\n"
        "Name: _gemv_mha_myl0_10, LayerType: kgen, Inputs: [], TacticName: y, StreamId: 0, "
        "Metadata: [ONNX Layer: c]\n"
        "Name: node_MatMul_myl0_11, LayerType: gemm, Inputs: [], TacticName: y, StreamId: 0, "
        "Metadata: \n"
    )
    layers = read_layers(["something else", listing])
    assert [layer.kernel for layer in layers] == [
        "__myl_TranReshMove",
        "_gemm_mha_v2",
        "_gemv_mha",
        "node_MatMul",
    ]
    assert attention_kernels(layers, ["a.b#2", "c", "d"]) == {
        "a.b#2": "_gemm_mha_v2",
        "c": "_gemv_mha",
    }


LINEARS = {"cross_modal_attention": 5, "vilt": 15, "qformer": 40}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cross_modal_attention", "int8"),
        *(
            pytest.param(name, "int8", marks=pytest.mark.slow)
            for name in LINEARS
            if name != "cross_modal_attention"
        ),
        pytest.param("vilt", "fp8", marks=pytest.mark.slow),
        pytest.param("clip", "mixed-int8", marks=pytest.mark.slow),
    ],
)
def test_zoo_engines_in_low_precision(
    name: str, precision: str, shared_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """By the log every layer is quantised that was to be, and attention is fused as in fp16."""
    path = shutil.copytree(shared_bundle(name, size="tiny").path, tmp_path / "bundle")
    sms = ("8.9", "12.0") if precision == "fp8" else SMS
    # With random weights some outputs are at the limits of the policy.
    (tmp_path / "same.py").write_text("def same(run, data):\n    return 1.0\n")
    metric: dict[str, Any] = {"metric": f"{tmp_path / 'same.py'}:same", "max_drop": 0.0}
    how = {} if precision == "mixed-int8" else metric
    bundle = crossfuse.build(
        path, "tensorrt-rtx", compute_capabilities=sms, precision=precision, **how
    )
    entry = bundle.target("tensorrt-rtx")
    assert all(is_fused(row.fused["tensorrt-rtx"]) for row in bundle.ledger)
    assert entry.parity is not None
    assert entry.parity["passed"]
    assert entry.parity["executed_on"] == f"CPUExecutionProvider, {precision} simulated"
    assert "of the reference's inputs" in entry.calibration
    kept = [row for row in entry.linears if row.became not in (INT8, FP8)]
    assert all(row.became == "kept in fp16" and row.reason and not row.asked for row in kept)
    if precision == "int8":
        assert entry.linears.counts() == {INT8: LINEARS[name]}
    else:
        assert len(kept) < len(entry.linears) / 2


MODELS = ["whisper", "blip_retrieval", "bart", "t5", "blip_vqa", "detr", "trocr", "bridgetower"]


def check_bundle(bundle: Bundle, sites: int) -> None:
    assert len(bundle.ledger) == sites
    for row in bundle.ledger:
        assert is_fused(row.fused["tensorrt-rtx"]), row
    entry = bundle.target("tensorrt-rtx")
    assert entry.engine is not None
    assert entry.engine.compute_capabilities == SMS
    assert entry.parity is not None
    assert entry.parity["passed"]
    assert "simulated" in entry.parity["executed_on"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=() if (name, size) in QUICK else pytest.mark.slow)
        for name in ZOO
        for size in ("tiny", "published")
    ],
)
def test_zoo_engines(
    name: str, size: str, shared_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    if size == "tiny":
        shared = shared_bundle(name, size=size).path
        bundle = open_bundle(shutil.copytree(shared, tmp_path / "bundle"))
    else:
        bundle = crossfuse.export(name, tmp_path / "bundle", ["ort-cpu"], size=size)
    for precision in ("fp16", "bf16"):
        built = crossfuse.build(bundle.path, **BUILD, precision=precision)  # type: ignore[arg-type]
        check_bundle(built, len(bundle.ledger))


@pytest.mark.parametrize("name", ["qformer", pytest.param("dalle", marks=pytest.mark.slow)])
def test_whole_zoo_engines(name: str, zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    path = shutil.copytree(zoo_bundle(name).path, tmp_path / "bundle")
    check_bundle(crossfuse.build(path, **BUILD, precision="fp16"), len(zoo_bundle(name).ledger))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_foreign_engines(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = crossfuse.export(case.make(), tmp_path / "bundle", ["ort-cpu"])
    assert (name == "detr") == ("model" in bundle.manifest.stages)
    for precision in ("fp16", "bf16"):
        built = crossfuse.build(bundle.path, **BUILD, precision=precision)  # type: ignore[arg-type]
        check_bundle(built, case.self_attentions + case.cross_attentions)


def test_masks_are_additive_and_cost_no_scattering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bool mask makes the builder put kernels of its own, and a copy from the host, in front of
    every attention."""
    seen: list[dict[str, Any]] = []
    work = engines._work
    monkeypatch.setattr(
        engines, "_work", lambda *arguments: seen.append(work(*arguments)) or seen[-1]
    )
    case = Case(size=16, value_size=16, mask=True, mask_rows=False)
    build_case(lower_tensorrt(cast_graph(case.model(), "fp16").model), tmp_path)
    kernels = [layer["kernel"] for layer in seen[0]["layers"]]
    assert "_gemm_mha_v2" in kernels
    assert not [k for k in kernels if "Scat" in k or "copy_h2d" in k]


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
def test_one_gpu_at_a_time(sm: str, zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    """The layers of an engine for one GPU are the same as those of an engine for several."""
    path = shutil.copytree(zoo_bundle("qformer").path, tmp_path / "bundle")
    built = crossfuse.build(path, "tensorrt-rtx", compute_capabilities=[sm], precision="fp16")
    assert all(is_fused(row.fused["tensorrt-rtx"]) for row in built.ledger)


def test_fp32_fails_by_site_name(bundle_copy: Path) -> None:
    with pytest.raises(FusionError, match=r"attention in tensorrt-rtx: .*fp32 attention"):
        crossfuse.build(bundle_copy, "tensorrt-rtx", compute_capabilities=["8.9"], precision="fp32")
    assert "tensorrt-rtx" not in open_bundle(bundle_copy).targets
    built = crossfuse.build(
        bundle_copy,
        "tensorrt-rtx",
        compute_capabilities=["8.9"],
        precision="fp32",
        allow_unfused=True,
    )
    assert [row.fused["tensorrt-rtx"] for row in built.ledger] == [None]


def test_second_build_is_cached(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "CROSSFUSE_CACHE", str(tmp_path / "cache")
    )  # other tests build this very engine
    said: list[str] = []
    first = crossfuse.build(
        bundle_copy, "tensorrt-rtx", compute_capabilities=["8.9"], step=said.append
    )
    assert not any("cached" in text for text in said)
    again = crossfuse.build(
        bundle_copy, "tensorrt-rtx", compute_capabilities=["8.9"], step=said.append
    )
    assert said[-1] == "tensorrt-rtx: cached: the bundle holds this very build"
    assert again.manifest == first.manifest
    # Another bundle of the same graph finds the engine.
    plan = bundle_copy / first.target("tensorrt-rtx").stages["model"]
    plan.write_bytes(b"damaged" + plan.read_bytes()[7:])
    said.clear()
    mended = crossfuse.build(
        bundle_copy, "tensorrt-rtx", compute_capabilities=["8.9"], step=said.append
    )
    assert "tensorrt-rtx: model: cached" in said
    assert mended.manifest.files == first.manifest.files
    # Another precision, other GPUs or shapes are other engines.
    for change in (
        {"precision": "bf16"},
        {"compute_capabilities": ["8.6"]},
        {"profile_shapes": ["batch=1:2:4"]},
    ):
        said.clear()
        crossfuse.build(
            bundle_copy,
            "tensorrt-rtx",
            step=said.append,
            **({"compute_capabilities": ["8.9"]} | change),
        )  # type: ignore[arg-type]
        assert not any("cached" in text for text in said), change


def test_a_changed_weight_misses(tmp_path: Path) -> None:
    said: list[str] = []
    for seed in (0, 1):
        crossfuse.export("cross_modal_attention", tmp_path / "bundle", size="tiny", seed=seed)
        crossfuse.build(
            tmp_path / "bundle", "tensorrt-rtx", compute_capabilities=["8.0"], step=said.append
        )
    assert not any("cached" in text for text in said)


def test_engines_are_verified_by_their_graph_where_they_can_not_run(bundle_copy: Path) -> None:
    crossfuse.build(bundle_copy, "tensorrt-rtx", compute_capabilities=["8.9"], precision="mixed")
    report = crossfuse.verify(bundle_copy, "tensorrt-rtx", bisect=True)
    assert report.passed
    assert report.fault is None
    assert report.executed_on == "CPUExecutionProvider, mixed simulated"


def test_cache_rebuilds_a_damaged_entry_and_builds_once(tmp_path: Path) -> None:
    made = []

    def make(plan: Path) -> dict[str, Any]:
        made.append(plan)
        plan.write_bytes(b"engine")
        return {"layers": []}

    assert from_cache("k" * 64, tmp_path / "a", make) == ({"layers": []}, False)
    assert from_cache("k" * 64, tmp_path / "b", make) == ({"layers": []}, True)
    assert (tmp_path / "b").read_bytes() == b"engine"
    kept = user_cache() / "engines" / ("k" * 64) / "plan"
    kept.write_bytes(b"engin3")
    assert from_cache("k" * 64, tmp_path / "c", make) == ({"layers": []}, False)
    assert len(made) == 2
    threads = [
        threading.Thread(target=from_cache, args=("t" * 64, tmp_path / f"t{i}", make))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert all((tmp_path / f"t{i}").read_bytes() == b"engine" for i in range(6))


def test_two_processes_build_once(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from crossfuse.targets.tensorrt.engine_cache import from_cache
def make(plan):
    time.sleep(0.5)
    plan.write_bytes(b"engine")
    return {"layers": []}
print(from_cache("p" * 64, Path(sys.argv[1]), make)[1])
"""
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen([*command, str(tmp_path / str(i))], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    assert sorted(process.communicate()[0].strip() for process in running) == ["False", "True"]


def test_a_crash_of_the_builder_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "crashes.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    crashing = Target("crashing", "", engine=EngineLibrary("crashes", ()))
    monkeypatch.setattr(engines, "require_target", lambda name: crashing)
    monkeypatch.setattr(engines, "library_version", lambda target: "0")
    lowered = lower_tensorrt(cast_graph(Case(size=16, value_size=16).model(), "fp16").model)
    with pytest.raises(EngineError, match="the engine builder crashed"):
        build_case(lowered, tmp_path)


def test_options_are_checked(bundle_copy: Path) -> None:
    for options, message in [
        ({}, "which GPUs to build for"),
        ({"compute_capabilities": ["9.0"]}, "can't build for these compute capabilities"),
        ({"compute_capabilities": ["SM89"]}, "can't be read"),
        (
            {"compute_capabilities": ["8.9"], "precision": "int4"},
            "can't be built in this precision",
        ),
        ({"compute_capabilities": ["8.9"], "io_dtype": "bf16"}, "can't have this type"),
        ({"compute_capabilities": ["8.6", "8.9"], "precision": "fp8"}, "don't multiply in fp8"),
        ({"compute_capabilities": ["8.9"], "lean": True}, "no lean runtime"),
        (
            {"compute_capabilities": ["8.9"], "profile_shapes": ["batch"]},
            "profile shapes can't be read",
        ),
        ({"compute_capabilities": ["8.9"], "profile_shapes": ["rows=2"]}, "unknown dimensions"),
        ({"compute_capabilities": ["8.9"], "profile_shapes": ["batch=4:2:8"]}, "out of order"),
    ]:
        with pytest.raises(InputError, match=message):
            crossfuse.build(bundle_copy, "tensorrt-rtx", **options)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"needs tensorrt, which is not installed.*crossfuse\[gpu\]"
    ):
        crossfuse.build(bundle_copy, "tensorrt")
    with pytest.raises(InputError, match="can't be built in this precision"):
        crossfuse.build(bundle_copy, "onnx", precision="fp16")


def test_profiles() -> None:
    dims = {"batch": Dim("batch"), "text": Dim("text", 2, 10)}
    example = {"batch": 2, "text": 7}
    assert profile_sizes(dims, example) == [{"batch": (1, 2, 8), "text": (2, 7, 10)}]
    wanted = [parse_profile("batch=1"), parse_profile("batch=1:4:32,text=5:5:6")]
    first, second = profile_sizes(dims, example, wanted)
    assert first == {"batch": (1, 1, 1), "text": (2, 7, 10)}
    assert second == {"batch": (1, 4, 32), "text": (5, 5, 6)}
    shapes = input_shapes([TensorSpec("x", "int64", ("2*batch", "text + 1", 3))], second)
    assert shapes == {"x": ((2, 6, 3), (8, 6, 3), (64, 7, 3))}
    split = {"batch": Dim("batch", 1, 64), "contexts": Dim("contexts", 1, 64)}
    both = {"batch": 2, "contexts": 2}
    followed = profile_sizes(
        split, both, [parse_profile(t) for t in ("batch=1", "batch=1:4:16", "batch=3")], "batch"
    )
    assert [profile["contexts"] for profile in followed] == [(1, 1, 1), (1, 2, 16), (1, 1, 3)]
    with pytest.raises(InputError, match="outside the dimension's range"):
        profile_sizes(dims, example, [parse_profile("text=1:5:10")])


def test_several_profiles(bundle_copy: Path) -> None:
    built = crossfuse.build(
        bundle_copy,
        "tensorrt-rtx",
        compute_capabilities=["8.9"],
        profile_shapes=["batch=1", "batch=2:4:8,length=1:4:8"],
    )
    engine = built.target("tensorrt-rtx").engine
    assert engine is not None
    assert [profile["batch"] for profile in engine.profiles] == [(1, 1, 1), (2, 4, 8)]
    assert [profile["length"] for profile in engine.profiles] == [(1, 7, 512), (1, 4, 8)]
