"""A stage on OpenVINO: arrays, precision, several callers, the cache, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import crossfuse
from crossfuse import runtime
from crossfuse.bundle.store import entry_of, open_bundle
from crossfuse.core import openvino as library
from crossfuse.core.openvino_linears import WIDE_FLOATS
from crossfuse.core.target import TARGETS
from crossfuse.errors import BundleError, InputError
from crossfuse.parity.session_check import reference_of
from crossfuse.runtime import SessionOptions, openvino_stage
from crossfuse.runtime.openvino_stage import DEVICE, OpenVinoStage
from crossfuse.runtime.stage import CompiledStage, StageRequest
from onnx_building import BOOL, FLOAT, HALF, INT64, Graph, normal
from onnx_text import parse

ONE = SessionOptions(threads=1)
TARGET = TARGETS["openvino"]


def test_all_doors_of_a_session_agree(openvino_bundle: Path) -> None:
    """Run, encode and query, several queries of one context, a binding; against the reference."""
    reference = reference_of(open_bundle(openvino_bundle)).points[0]
    whole = {name: array.copy() for name, array in reference.inputs.items()}
    with runtime.load(openvino_bundle, "openvino", ONE) as session:
        assert session.provider == "OpenVINO"
        expected = session.run(whole)
        for name, truth in reference.outputs.items():
            np.testing.assert_allclose(expected[name], truth, atol=4e-2)
        first = [spec.name for spec in session.stages["context"].inputs]
        context = session.encode({name: whole.pop(name) for name in first})
        kept = {name: np.array(array) for name, array in context.tensors.items()}
        asked = session.query(context, whole)
        twice = session.query(context, {n: a.repeat(2, axis=0) for n, a in whole.items()})
        binding = session.bind(reference.inputs | {n: a.copy() for n, a in whole.items()})
        bound = {name: array.copy() for name, array in binding.run().items()}
        for name, array in expected.items():
            np.testing.assert_array_equal(asked[name], array)
            np.testing.assert_array_equal(bound[name], array)
        np.testing.assert_allclose(twice["fused"][::2], expected["fused"], atol=4e-2)
        for name, array in context.tensors.items():
            assert not array.flags.writeable
            np.testing.assert_array_equal(array, kept[name], "a query wrote into a context")


def test_several_threads_run_it_at_once(openvino_bundle: Path) -> None:
    inputs = [p.inputs for p in reference_of(open_bundle(openvino_bundle)).points]
    options = SessionOptions(threads=2, streams=2)
    with runtime.load(openvino_bundle, "openvino", options) as session:
        expected = [session.run(one) for one in inputs]
        got: dict[int, dict[str, Any]] = {}

        def work(i: int) -> None:
            got[i] = session.run(inputs[i % len(inputs)])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3 * len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, outputs in got.items():
            for name, array in outputs.items():
                np.testing.assert_array_equal(array, expected[i % len(inputs)][name])


def test_dtypes_empty_arrays_scalars_and_strides(tmp_path: Path) -> None:
    """What is handed on as it is keeps its own name at either end."""
    graph = Graph()
    for name, shape, kind in (
        ("a", ["n", 3], FLOAT),
        ("flag", ["n"], BOOL),
        ("id", [], INT64),
        ("h", [2], HALF),
    ):
        graph.input(name, shape, kind)
    for operator, given, made, shape, kind in (
        ("Identity", ["a"], "same", ["n", 3], FLOAT),
        ("Not", ["flag"], "other", ["n"], BOOL),
        ("Add", ["id", "id"], "double", [], INT64),
        ("Neg", ["h"], "minus", [2], HALF),
    ):
        graph.op(operator, *given, outputs=[made])
        graph.output(made, shape, kind)
    boundary = (("a", "flag", "id", "h"), ("same", "other", "double", "minus"))
    path = Path(graph.save(tmp_path / "g.onnx"))
    stage = OpenVinoStage(StageRequest(TARGET, path, ONE, boundary=boundary))
    assert stage.boundary == boundary
    assert isinstance(stage, CompiledStage)
    assert stage.attentions({}) == ({}, {})
    for n in (2, 0, 3):
        a = np.arange(6 * n, dtype=np.float32).reshape(n, 6)[:, ::2]
        flag, half = np.arange(n) % 2 == 0, np.ones(2, np.float16)
        half.flags.writeable = False
        feeds = {"a": a, "flag": flag, "id": np.array(2**20), "h": half}
        same, other, double, minus = stage.run(feeds)
        np.testing.assert_array_equal(same, a)
        assert (other.dtype, double.dtype, minus.dtype) == (bool, np.int64, np.float16)
        np.testing.assert_array_equal(other, ~flag)
        np.testing.assert_array_equal(double, 2**21)
        np.testing.assert_array_equal(minus, -half)


def test_what_it_refuses(tmp_path: Path, openvino_bundle: Path) -> None:
    graph = openvino_bundle / "query.openvino.onnx"
    for options, precision, message in (
        (ONE, "int3", "executes no graphs in this precision: got 'int3'"),
        (SessionOptions(provider_options={DEVICE: "TPU"}), "fp32", "no device 'TPU' here"),
        (SessionOptions(provider_options={"NO_SUCH": "1"}), "fp32", "can't load the graph"),
    ):
        with pytest.raises(BundleError, match=message):
            OpenVinoStage(StageRequest(TARGET, graph, options, precision=precision))
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="OpenVINO can't load the graph"):
        OpenVinoStage(StageRequest(TARGET, tmp_path / "bad.onnx", ONE))
    stage = OpenVinoStage(StageRequest(TARGET, graph, ONE))
    feeds = {name: np.zeros((1, 1), np.float32) for name in stage.boundary[0]}
    with pytest.raises(InputError, match="the engine refused the inputs"):
        stage.run(feeds)


def test_a_processor_without_the_type_is_told(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = library.openvino().Core
    monkeypatch.setattr(core, "get_property", lambda *_: ["FP32"])
    for precision in ("bf16", "fp16"):
        request = StageRequest(
            TARGET, openvino_bundle / "query.openvino.onnx", ONE, precision=precision
        )
        with pytest.raises(BundleError, match=f"does not compute in {precision}.*in fp32"):
            OpenVinoStage(request)


@pytest.mark.parametrize(
    ("said", "precision", "given", "computed"),
    [
        ("bf16", "int8", {}, "bf16"),
        ("bf16", "fp32", {}, "fp32"),
        ("fp16", "int8", {}, "fp32"),
        (None, "int8", {}, "fp32"),
        ("bf16", "int8", {"INFERENCE_PRECISION_HINT": "f32"}, "fp32"),
    ],
)
def test_what_is_no_integer_is_computed_as_the_graph_says(
    tmp_path: Path, said: str | None, precision: str, given: dict[str, str], computed: str
) -> None:
    """The product's own type, by the execution graph and by its numbers: bf16 keeps 8 bits."""
    weights, x = normal(64, 64, seed=1), normal(5, 64, seed=2)
    model = parse("(float[b, 64] x) => (float[b, 64] y) { y = MatMul(x, w) }", w=weights)
    if said is not None:
        model.metadata_props[WIDE_FLOATS] = said
    path = tmp_path / "model.openvino.onnx"
    ir.save(model, path)
    options = SessionOptions(threads=1, provider_options=given)
    stage = OpenVinoStage(StageRequest(TARGET, path, options, precision=precision))
    (got,) = stage.run({"x": x})
    truth = x.astype(np.float64) @ weights
    error = np.linalg.norm(got - truth) / np.linalg.norm(truth)
    here = "BF16" in library.openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    expected = computed if here else "fp32"
    assert [one.words for one in stage.linears(["y"]).values()] == [expected]
    assert (error > 1e-4) == (expected == "bf16")


def test_without_openvino_the_error_says_what_to_install(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfuse.core.openvino.is_installed", lambda _: False)
    monkeypatch.setattr("crossfuse.core.target.is_installed", lambda name: name != "openvino")
    advice = r"pip install 'crossfuse\[openvino\]'"
    with pytest.raises(BundleError, match=f"needs OpenVINO, which is not installed.*{advice}"):
        runtime.load(openvino_bundle, "openvino")
    with pytest.raises(crossfuse.InputError, match=f"built with openvino.*{advice}"):
        crossfuse.build(openvino_bundle, "openvino")
    with runtime.load(openvino_bundle) as session:
        assert session.target == "ort-cpu"


def test_a_cache_that_can_not_be_written_is_done_without(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "file"))
    with runtime.load(openvino_bundle, "openvino", ONE) as session:
        assert session.provider == "OpenVINO"
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "cache"))
    off = SessionOptions(threads=1, provider_options={"CACHE_DIR": ""})
    with runtime.load(openvino_bundle, "openvino", off) as session:
        assert session.provider == "OpenVINO"
    assert not list((tmp_path / "cache").rglob("*.blob"))


def test_compiled_models_are_kept_by_content(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path))
    inputs = reference_of(open_bundle(openvino_bundle)).points[0].inputs
    results = []
    for _ in range(2):
        with runtime.load(openvino_bundle, "openvino", ONE) as session:
            results.append(session.run(inputs))
    kept = sorted((tmp_path / "openvino").iterdir())
    assert len(kept) == 2, "one folder per stage"
    assert all(len(list(folder.glob("*.blob"))) == 1 for folder in kept)
    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array)
    other = tmp_path / "other"
    shutil.copytree(openvino_bundle, other)
    crossfuse.build(other, "openvino", precision="fp32")
    with runtime.load(other, "openvino", ONE) as session:
        precise = session.run(inputs)
    assert len(list((tmp_path / "openvino").iterdir())) == 4, "and nothing is left beside"
    worst = reference_of(open_bundle(other)).points[0].outputs
    for name, array in precise.items():
        np.testing.assert_allclose(array, worst[name], atol=1e-5)


def test_what_a_killed_compilation_left_is_removed_by_the_next(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path))
    process = os.fork()
    if not process:
        with openvino_stage._kept("digest", ()):
            os._exit(0)  # its end is like a kill's: nothing is cleaned
    os.waitpid(process, 0)
    (left,) = (tmp_path / "openvino").iterdir()
    with runtime.load(openvino_bundle, "openvino", ONE):
        pass
    assert not left.exists()
    assert len(list((tmp_path / "openvino").iterdir())) == 2, "one folder per stage"


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname"])
def test_nothing_outside_the_bundle_is_read(
    location: str, openvino_bundle: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(openvino_bundle, tmp_path / "inside" / "bundle"))
    shutil.copy(path / "weights.bin", tmp_path / "inside" / "weights.bin")
    graph = path / "query.openvino.onnx"
    model = onnx.load(graph, load_external_data=False)
    entries = [
        entry
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    assert entries
    for entry in entries:
        entry.value = location
    graph.write_bytes(model.SerializeToString())
    manifest = json.loads((path / "manifest.json").read_text())
    own = entry_of(graph)
    manifest["files"][graph.name] = {"size": own.size, "sha256": own.sha256}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside the bundle is read"):
        runtime.load(path, "openvino")


def test_a_manifests_claims_are_not_code(openvino_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(openvino_bundle, tmp_path / "bundle"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["targets"]["openvino"]["precision"] = "../../x"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="executes no graphs in this precision"):
        runtime.load(path, "openvino")
