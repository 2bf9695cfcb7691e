"""Profiles of real bundles: rows, baselines, where the time goes, counted work, fresh processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import crossfuse
from crossfuse import ModelSpec
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.cli import app, main
from crossfuse.errors import InputError
from crossfuse.models import layers
from crossfuse.models.registry import ZOO, zoo_spec
from crossfuse.ops.torch_op import compute
from crossfuse.parity.reference import load_reference
from crossfuse.profiling.baselines import Baselines
from crossfuse.profiling.explain.attribution import (
    OpenedGraph,
    StageTimes,
    group,
    module_pattern,
    trace_stage,
)
from crossfuse.profiling.explain.machine import Limits, measure_limits
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.explain.work import kind_of, work_of
from crossfuse.profiling.measure.sampling import Plan
from crossfuse.runtime.options import SessionOptions

CPU = "CPUExecutionProvider"
FAST = Plan(rounds=3, seconds=0.01)


def schema() -> Any:
    return json.loads(
        (
            Path(crossfuse.__file__).parent / "profiling" / "report" / "report.schema.json"
        ).read_text()
    )


def test_command_line(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    path = str(zoo_bundle("cross_modal_attention").path)
    out, page = tmp_path / "a.json", tmp_path / "a.html"
    command = [
        "profile",
        path,
        "--target",
        "ort-cpu",
        "--against",
        "eager,tensorrt",
        "--sweep",
        "batch=1,3",
    ]
    quick = [
        "--rounds",
        "3",
        "--seconds",
        "0.01",
        "--cold-starts",
        "1",
        "--callers",
        "2",
        "--rates",
        "50",
        "--load-seconds",
        "0.1",
    ]
    result = CliRunner().invoke(app, [*command, *quick, "-o", str(out), "--html", str(page)])
    assert result.exit_code == 0, result.output
    for text in (
        "crossfuse",
        "eager",
        "tensorrt at",
        "is a baseline on GPUs",
        "cold start",
        "of the roofline",
        "2 callers",
    ):
        assert text in result.output
    data = json.loads(out.read_text())
    jsonschema.validate(data, schema())
    names = [(row["name"], row["sizes"]["batch"]) for row in data["rows"]]
    assert names == [
        (name, batch) for batch in (1, 3) for name in ("crossfuse", "eager", "tensorrt")
    ]
    for row in data["rows"]:
        if row["name"] == "tensorrt":
            assert row["failure"] == "tensorrt is a baseline on GPUs: got cpu."
            continue
        assert row["failure"] is None, row
        assert 0 < row["latency"]["min"] <= row["latency"]["p50"] <= row["latency"]["p99"]
        if row["name"] == "eager":
            assert row["error"] < 1e-5, "a baseline computes the same"
            assert row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
    cold = data["cold_start"]
    assert cold["total"] == pytest.approx(
        sum(cold[k] for k in ("process", "imports", "load", "first_result"))
    )
    assert 3e7 < cold["peak_bytes"] < 4e8, "of the fresh process, not of the one that started it"
    assert [row["kind"] for row in data["load"]] == ["closed", "open"]
    assert {node["site"] for stage in data["stages"] for node in stage["nodes"]} - {None} == {
        r["site"] for r in data["ledger"]
    }
    assert page.read_text().startswith("<!doctype html>")


def test_wrong_usage(zoo_bundle: Callable[[str], Bundle]) -> None:
    path = str(zoo_bundle("cross_modal_attention").path)
    with pytest.raises(InputError, match="no such baseline"):
        crossfuse.profile(path, against=["tpu"])
    for option in ("--callers", "--rates"):
        with pytest.raises(SystemExit) as stop:
            main(["profile", path, option, "1,x"])
        assert stop.value.code == 2


@pytest.mark.slow
def test_baselines_of_a_model_that_is_not_the_zoos_need_a_source(tmp_path: Path) -> None:
    bundle = crossfuse.export(zoo_spec("cross_modal_attention", "tiny"), tmp_path / "bundle")
    with pytest.raises(InputError, match="source="):
        crossfuse.profile(bundle.path, against=["eager"], plan=FAST, cold_starts=0, trace=False)
    report = crossfuse.profile(bundle.path, plan=FAST, cold_starts=0, trace=False)
    assert [row.name for row in report.rows] == ["crossfuse", "crossfuse encode", "crossfuse query"]
    assert report.stages == ()
    assert report.limits is None


WIDTH, WIDE = 192, 768


class Block(nn.Module):
    """Attention and two products."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, WIDE), nn.Linear(WIDE, WIDTH)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attention(x, memory, memory, need_weights=False)[0]
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.fixture(scope="module")
def block_spec() -> ModelSpec:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 200, WIDTH), "memory": torch.randn(2, 150, WIDTH)}
    return ModelSpec(Block().eval(), inputs, {"x": {0: "batch:1:2"}, "memory": {0: "batch"}})


@pytest.fixture(scope="module")
def block(block_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return crossfuse.export(block_spec, tmp_path_factory.mktemp("block") / "bundle")


@pytest.fixture(scope="module")
def traced(block: Bundle) -> StageTimes:
    return trace(block)


def trace(bundle: Bundle, runs: int = 12) -> StageTimes:
    graph = bundle.path / bundle.target("ort-cpu").stages["model"]
    assert bundle.manifest.reference is not None
    feeds = dict(load_reference(bundle.path / bundle.manifest.reference).points[0].inputs)
    given = {spec.name: feeds[spec.name] for spec in bundle.manifest.stages["model"].inputs}
    options = SessionOptions(threads=1)
    return trace_stage(
        "model",
        OpenedGraph(graph, CPU, options),
        given,
        runs=runs,
        sites=[r.site for r in bundle.ledger],
    )


def test_nodes_add_up_to_the_run(traced: StageTimes) -> None:
    # Nodes run one after another, inside the run.
    assert 0 <= traced.between < traced.seconds
    assert all(n.seconds >= 0 for n in traced.nodes)
    for key in ("kind", "module"):
        assert sum(
            n.seconds for _, nodes in group(traced.nodes, key) for n in nodes
        ) == pytest.approx(sum(n.seconds for n in traced.nodes))


def test_nodes_belong_to_modules_and_sites(traced: StageTimes) -> None:
    modules = dict(group(traced.nodes, "module"))
    assert {"attention", "up", "down"} <= set(modules)
    assert [(n.site, n.op) for n in traced.nodes if n.site] == [("attention", "Attention")]
    by_kind = {kind: sum(n.flops for n in nodes) for kind, nodes in group(traced.nodes, "kind")}
    assert by_kind["attention"] == 2 * 2 * (2 * 200 * 150 * WIDTH)
    projections = 2 * 2 * WIDTH * WIDTH * (200 + 150 + 150 + 200)
    assert by_kind["GEMM"] == projections + 2 * 2 * 2 * 200 * WIDTH * WIDE
    up = next(n for n in modules["up"] if n.kind == "GEMM")
    assert up.bytes == 4 * (2 * 200 * WIDTH + WIDTH * WIDE + 2 * 200 * WIDE), (
        "packed weights count, too"
    )


def test_without_onnx_ir_sites_and_kinds_are_known(
    block: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfuse.profiling.explain.attribution.find_spec", lambda _: None)
    nodes = trace(block, 2).nodes
    assert {n.module for n in nodes} == {"attention", ""}
    assert [n.site for n in nodes if n.kind == "attention"] == ["attention"]
    monkeypatch.setattr("crossfuse.profiling.explain.machine.find_spec", lambda _: None)
    assert measure_limits(CPU, SessionOptions()) is None


def counted(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> int:
    """By PyTorch's own counter, with our operator computed in operators that it knows."""

    def plain(
        *tensors: Any,
        num_heads: int,
        kv_num_heads: int | None = None,
        scale: float | None = None,
        **more: Any,
    ) -> Tensor:
        factor = (tensors[0].shape[-1] // num_heads) ** -0.5 if scale is None else scale
        return compute(
            *tensors,
            num_heads=num_heads,
            kv_num_heads=kv_num_heads or num_heads,
            scale=factor,
            **more,
        )

    monkeypatch.setattr(layers, "fused_attention", plain)
    written_out = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.inference_mode(), written_out, FlopCounterMode(display=False) as counter:
        spec.module(**spec.inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", list(ZOO))
def test_counted_work_is_pytorchs(
    name: str, zoo_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the graph, and of what ONNX Runtime executed."""
    bundle = zoo_bundle(name)  # made first: other tests share it
    truth = counted(zoo_spec(name, "tiny"), monkeypatch)
    assert bundle.manifest.stages["model"].flops == pytest.approx(truth, rel=0.01)
    assert sum(node.flops for node in trace(bundle, 1).nodes) == pytest.approx(truth, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ZOO))
def test_counted_work_is_pytorchs_at_published_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = crossfuse.export(name, tmp_path / "bundle", ["ort-cpu"], whole=True)
    truth = counted(zoo_spec(name), monkeypatch)
    assert bundle.manifest.stages["model"].flops == pytest.approx(truth, rel=0.01)
    assert sum(
        node.flops for node in trace(open_bundle(tmp_path / "bundle"), 1).nodes
    ) == pytest.approx(truth, rel=0.01)


def test_work_of_operators() -> None:
    def shapes(*sizes: list[int]) -> list[dict[str, list[int]]]:
        return [{"float": list(size)} for size in sizes]

    def work(op: str, inputs: list[list[int]], output: list[int], **more: Any) -> tuple[int, int]:
        moved = {"activation_size": "10", "output_size": "20", "parameter_size": "0"}
        return work_of(
            op,
            {**moved, "input_type_shape": shapes(*inputs), "output_type_shape": shapes(output)},
            **more,
        )

    assert work("MatMul", [[2, 5, 8]], [2, 5, 16]) == (2 * 2 * 5 * 8 * 16, 30 + 4 * 8 * 16)
    assert work("MatMul", [[2, 4, 5, 8], [2, 4, 8, 3]], [2, 4, 5, 3]) == (2 * 2 * 4 * 5 * 8 * 3, 30)
    assert work("FusedMatMul", [[2, 4, 5, 8], [2, 4, 3, 8]], [2, 4, 5, 3]) == (
        2 * 2 * 4 * 5 * 8 * 3,
        30,
    )
    grouped = work("Attention", [[2, 5, 64], [2, 7, 32], [2, 7, 16]], [2, 5, 32])
    assert grouped == (2 * 2 * 5 * 7 * (64 + 32), 30)
    assert work("Conv", [[1, 3, 8, 8]], [1, 16, 8, 8], kernel=(5, 3, 3, 3))[0] == 2 * 64 * 5 * 27
    assert work("Softmax", [[2, 5]], [2, 5]) == (0, 30)
    assert kind_of("Unheard") == "other"
    assert module_pattern("text.layers.11.attention.query") == "text.layers.*.attention.query"
    assert module_pattern("blocks.3") == "blocks.*"


def test_the_roof(traced: StageTimes) -> None:
    limits = Limits(1e9, 1e8, (1, 1, 1))
    node = traced.nodes[0]
    products = [n for n in traced.nodes if n.kind == "GEMM"]
    under = attained(products, limits)
    assert under.least == pytest.approx(sum(max(n.flops / 1e9, n.bytes / 1e8) for n in products))
    assert under.fraction == pytest.approx(under.least / sum(n.seconds for n in products))
    assert under.intensity == pytest.approx(
        sum(n.flops for n in products) / sum(n.bytes for n in products)
    )
    assert attained([node], limits).seconds == node.seconds
    measured = measure_limits(CPU, SessionOptions(threads=1))
    assert measured is not None
    assert 1e9 < measured.flops < 1e13
    assert 1e8 < measured.bandwidth < 1e12


@pytest.fixture(scope="module")
def baselines(block_spec: ModelSpec) -> Any:
    with Baselines(block_spec, threads=1) as made:
        yield made


@pytest.mark.parametrize(
    "name", ["eager", "onnx", "openvino-f32", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_baselines_compute_the_model(
    name: str, baselines: Baselines, block_spec: ModelSpec
) -> None:
    inputs = {key: tensor.numpy() for key, tensor in block_spec.inputs.items()}
    with torch.inference_mode():
        expected = block_spec.module(**block_spec.inputs).numpy()
    (output,) = baselines.make(name, inputs)().values()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_baselines_that_need_something_else(baselines: Baselines) -> None:
    for name, reason in (
        ("hf", "not a model of transformers"),
        ("eager-fp16", "on GPUs"),
        ("tpu", "no such baseline"),
    ):
        with pytest.raises(InputError, match=reason):
            baselines.make(name, {})


@pytest.mark.slow
def test_the_librarys_own_exporter_is_a_baseline() -> None:
    import transformers as hf

    torch.manual_seed(0)
    text = hf.CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
    )
    spec = crossfuse.huggingface_spec(hf.CLIPTextModel(text).eval())
    inputs = {key: tensor.numpy() for key, tensor in spec.inputs.items()}
    with Baselines(spec) as made:
        expected, output = made.make("eager", inputs)(), made.make("hf", inputs)()
    shared = set(expected) & set(output)
    assert shared
    for key in shared:
        np.testing.assert_allclose(output[key], expected[key], rtol=1e-4, atol=1e-4)
