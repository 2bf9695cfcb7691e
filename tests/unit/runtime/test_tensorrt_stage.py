"""The TensorRT runtime's own logic, over a stand-in for the library and the GPU; ``gpu`` tests
execute real engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
import fake_tensorrt as fake
from crossfuse import runtime
from crossfuse.bundle.manifest import EngineInfo
from crossfuse.bundle.store import Bundle
from crossfuse.core.files import user_cache
from crossfuse.errors import BundleError, InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.reference import load_reference
from crossfuse.profiling.explain.attribution import trace_engine
from crossfuse.profiling.measure.device_inputs import on_gpu
from crossfuse.runtime import execution_slot
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.driver import gpu_count
from crossfuse.runtime.gpu import Gpu
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.runtime.tensorrt_stage import TrtStage, check_version

INFO = EngineInfo("tensorrt_rtx", fake.VERSION, ("8.9",), (), request="r")


def ranges(bundle: Bundle, stage: str, batch: tuple[int, int]) -> dict[str, Any]:
    found = {}
    for spec in bundle.manifest.stages[stage].inputs:
        low = tuple(1 if isinstance(d, str) else d for d in spec.shape)
        low = tuple(
            batch[0] if d in ("batch", "contexts") else low[i] for i, d in enumerate(spec.shape)
        )
        high = tuple(64 if isinstance(d, str) else d for d in spec.shape)
        high = tuple(
            batch[1] if d in ("batch", "contexts") else high[i] for i, d in enumerate(spec.shape)
        )
        found[spec.name] = (low, low, high)
    return found


def stage_of(
    bundle: Bundle,
    folder: Path,
    stage: str = "model",
    *,
    profiles: tuple[tuple[int, int], ...] = ((1, 64),),
    options: SessionOptions | None = None,
    rtx: bool = False,
) -> tuple[TrtStage, fake.Library, fake.Gpu]:
    library, gpu = fake.Library(rtx=rtx), fake.Gpu()
    graph = bundle.path / bundle.target("ort-cpu").stages[stage]
    plan = fake.write_plan(
        folder / f"{stage}.plan", graph, [ranges(bundle, stage, batch) for batch in profiles]
    )
    target = "tensorrt-rtx" if rtx else "tensorrt"
    return (
        TrtStage(plan, target, INFO, options or SessionOptions(), library=library, gpu=gpu),
        library,
        gpu,
    )


def session_of(bundle: Bundle, stages: dict[str, TrtStage]) -> Session:
    manifest = bundle.manifest
    return Session(
        "tensorrt-rtx",
        manifest.stages,
        manifest.dims,
        stages,
        shared_batch=manifest.shared_batch,
        owner="fake",
    )


@pytest.fixture
def bundle(zoo_bundle: Callable[[str], Bundle]) -> Bundle:
    return zoo_bundle("cross_modal_attention")


def test_runs_as_onnx_runtime_does(bundle: Bundle, tmp_path: Path) -> None:
    stage, library, gpu = stage_of(bundle, tmp_path)
    session = session_of(bundle, {"model": stage})
    with runtime.load(bundle.path, "ort-cpu") as expected:
        for point in load_reference(bundle.path / "reference.npz").points:
            for _ in range(3):
                got = session.run(**point.inputs)
                for name, array in expected.run(**point.inputs).items():
                    np.testing.assert_array_equal(got[name], array)
    assert len(library.engines[0].contexts) == 1
    assert gpu.captured > 0
    assert gpu.replayed >= gpu.captured
    allocated = gpu.allocated
    session.run(**point.inputs)
    assert gpu.allocated == allocated, "buffers are kept"


def test_graphs_are_captured_once_per_shape_and_bounded(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_slot, "MAX_GRAPHS", 2)
    stage, library, gpu = stage_of(bundle, tmp_path)
    session = session_of(bundle, {"model": stage})
    spec = zoo_spec("cross_modal_attention", "tiny")
    sizes = [spec.example_sizes | {"length": n} for n in (8, 5, 3)]
    samples = [{n: t.numpy() for n, t in spec.sample(s, 0).items()} for s in sizes]
    for _ in range(3):
        session.run(**samples[0])
    # Two direct executions, one that is captured behind the second, one replay.
    assert (gpu.captured, gpu.replayed, library.engines[0].executed) == (1, 1, 3)
    for sample in samples[1:]:
        session.run(**sample)
    session.run(**samples[0])
    assert gpu.captured == 1, "the first shape's graph went when the third came; it is seen anew"


def test_time_by_layer_is_the_library_s_own(bundle: Bundle, tmp_path: Path) -> None:
    """The attention's kernel is found by the ONNX node that it came from; a helper of the same node
    isn't it."""
    stage, library, gpu = stage_of(bundle, tmp_path)
    site = bundle.ledger[0].site
    library.engines[0].layers = [
        {
            "Name": "__myl_TranReshMove_myl0_1",
            "LayerType": "kgen",
            "Metadata": f"[ONNX Layer: {site}]",
            "ms": 0.5,
        },
        {
            "Name": "_gemm_mha_v2_myl0_2",
            "LayerType": "kgen",
            "Metadata": f"[ONNX Layer: q]\x1e[ONNX Layer: {site}]",
            "ms": 2.0,
        },
        {
            "Name": "node_MatMul_myl0_3",
            "LayerType": "gemm",
            "Metadata": "[ONNX Layer: node_MatMul]",
            "ms": 1.0,
        },
    ]
    inputs = load_reference(bundle.path / "reference.npz").points[0].inputs
    times = trace_engine("model", stage, inputs, runs=8, sites=[site])
    assert [(node.op, node.kind, node.site) for node in times.nodes] == [
        ("__myl_TranReshMove", "copy", None),
        ("_gemm_mha_v2", "attention", site),
        ("node_MatMul", "GEMM", None),
    ]
    np.testing.assert_allclose([node.seconds for node in times.nodes], [0.0005, 0.002, 0.001])
    assert times.seconds == pytest.approx(0.0035)
    assert times.between == pytest.approx(0)
    assert gpu.captured == 0, "the slot that is profiled captures nothing"
    for _ in range(2):
        assert session_of(bundle, {"model": stage}).run(**inputs)
    assert gpu.captured == 1, "lanes without a profiler capture as before"


def test_profiles_are_chosen_by_shape(bundle: Bundle, tmp_path: Path) -> None:
    stage, library, _ = stage_of(bundle, tmp_path, profiles=((1, 1), (2, 8)))
    session = session_of(bundle, {"model": stage})
    spec = zoo_spec("cross_modal_attention", "tiny")
    with runtime.load(bundle.path, "ort-cpu") as expected:
        for batch in (1, 4, 1, 8):
            inputs = {
                n: t.numpy()
                for n, t in spec.sample(spec.example_sizes | {"batch": batch}, 0).items()
            }
            np.testing.assert_array_equal(
                session.run(**inputs)["fused"], expected.run(**inputs)["fused"]
            )
            assert library.engines[0].contexts[0].profile == int(batch > 1)
    inputs = {n: t.numpy() for n, t in spec.sample(spec.example_sizes | {"batch": 9}, 0).items()}
    with pytest.raises(InputError, match="outside the engine's profiles.*profile_shapes"):
        session.run(**inputs)


def test_threads_have_slots_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    stage, library, _ = stage_of(bundle, tmp_path, options=SessionOptions(lanes=3))
    session = session_of(bundle, {"model": stage})
    spec = zoo_spec("cross_modal_attention", "tiny")
    samples = [
        {n: t.numpy() for n, t in spec.sample(spec.example_sizes, seed).items()}
        for seed in range(8)
    ]
    with runtime.load(bundle.path, "ort-cpu") as reference:
        expected = [reference.run(**sample)["fused"] for sample in samples]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            if not np.array_equal(session.run(**samples[i])["fused"], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(library.engines[0].contexts) <= 3


def test_contexts_stay_on_the_device(shared_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = shared_bundle("qformer", size="tiny")
    opened = {name: stage_of(bundle, tmp_path, name) for name in ("context", "query")}
    session = session_of(bundle, {name: stage for name, (stage, _, _) in opened.items()})
    point = load_reference(bundle.path / "reference.npz").points[-1]
    names = {spec.name for spec in bundle.manifest.stages["context"].inputs}
    inputs = dict(point.inputs)
    context = session.encode(**{n: inputs[n] for n in names})
    assert all(isinstance(t, DeviceArray) for t in context.tensors.values())
    assert context.nbytes == sum(t.nbytes for t in context.tensors.values()) > 0
    queries = {n: a for n, a in inputs.items() if n not in names}
    uploads = opened["query"][2].uploads
    with runtime.load(bundle.path, "ort-cpu") as reference:
        expected = reference.run(**inputs)
    for got in (session.query(context, **queries), session.run(**inputs)):
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
    assert opened["query"][2].uploads == uploads + 2 * len(queries), "only the queries were copied"
    with pytest.raises(InputError, match="can't be bound"):
        session.bind(**inputs)


def test_inputs_on_the_device_are_not_copied(bundle: Bundle, tmp_path: Path) -> None:
    stage, _, gpu = stage_of(bundle, tmp_path)
    point = load_reference(bundle.path / "reference.npz").points[0]
    placed = on_gpu(point.inputs, gpu)  # type: ignore[arg-type]
    uploads = gpu.uploads
    assert uploads == 0
    outputs = stage.run_on_device(placed)
    assert gpu.uploads == uploads
    with runtime.load(bundle.path, "ort-cpu") as expected:
        for got, array in zip(outputs, expected.run(**point.inputs).values(), strict=True):
            np.testing.assert_array_equal(got.numpy(), array)


def test_compiled_kernels_are_kept_for_the_next_process(bundle: Bundle, tmp_path: Path) -> None:
    stage, _, _ = stage_of(bundle, tmp_path, rtx=True)
    session_of(bundle, {"model": stage}).close()
    kept = list((user_cache() / "kernels").glob("model.plan-*.bin"))
    assert [path.read_bytes() for path in kept] == [b"kernels"]
    _, library, _ = stage_of(bundle, tmp_path, rtx=True)
    assert [cache.kept for cache in library.engines[0].caches] == [{"given": b"kernels"}]


def test_what_does_not_fit_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.path / bundle.target("ort-cpu").stages["model"]
    plan = fake.write_plan(tmp_path / "model.plan", graph, [ranges(bundle, "model", (1, 4))])

    def opened(
        info: EngineInfo = INFO, *, library: Any = None, gpu: Any = None, options: Any = None
    ) -> TrtStage:
        return TrtStage(
            plan,
            "tensorrt-rtx",
            info,
            options or SessionOptions(),
            library=library or fake.Library(),
            gpu=gpu,
        )

    with pytest.raises(
        BundleError,
        match=r"not built for this GPU.*9\.0.*expected 8\.9.*compute_capabilities=\['9\.0'\]",
    ):
        opened(gpu=fake.Gpu("9.0"))
    refusing = fake.Library()
    refusing.refuses = True
    with pytest.raises(BundleError, match=r"TensorRT-RTX 1\.7\.1\.116 refuses the engine"):
        opened(library=refusing, gpu=fake.Gpu())
    with pytest.raises(BundleError, match="another provider"):
        opened(gpu=fake.Gpu(), options=SessionOptions(provider="CPUExecutionProvider"))


@pytest.mark.parametrize(
    ("installed", "built", "lean", "fits"),
    [
        ("1.7.1.116", "1.7.1.116", False, True),
        ("1.7.2.1", "1.7.1.116", False, False),
        ("11.4.0", "11.2.0", True, True),
        ("11.1.0", "11.2.0", True, False),
        ("12.0.0", "11.2.0", True, False),
    ],
)
def test_versions(installed: str, built: str, lean: bool, fits: bool) -> None:
    info = EngineInfo("tensorrt", built, (), (), lean=lean)
    if fits:
        check_version(installed, info, "tensorrt")
    else:
        with pytest.raises(BundleError, match="another version of TensorRT.*installed is"):
            check_version(installed, info, "tensorrt")


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU")
def test_without_a_gpu(bundle_copy: Path) -> None:
    """A bundle with an engine says what is missing, and its other targets run."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    crossfuse.build(bundle_copy, "tensorrt-rtx", compute_capabilities=["8.9"])
    with pytest.raises(BundleError, match=r"no NVIDIA GPU.*ort-cpu"):
        load(bundle_copy, "tensorrt-rtx")
    with load(bundle_copy) as session:
        assert session.target == "ort-cpu"
    with pytest.raises(BundleError, match="no NVIDIA GPU"):
        Gpu()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cross_modal_attention", "clip", "vilt", "qformer", "dalle"])
def test_real_engines_compute_what_eager_computes(name: str, tmp_path: Path) -> None:
    """Builds for the GPU at hand and checks parity on it, contexts encoded once included."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    capability = Gpu().capability
    bundle = crossfuse.export(name, tmp_path / "bundle", size="tiny")
    try:
        built = crossfuse.build(bundle.path, "tensorrt-rtx", compute_capabilities=[capability])
    except InputError as error:
        pytest.skip(f"TensorRT-RTX has no engines for this GPU: {error}")
    parity = built.target("tensorrt-rtx").parity
    assert parity is not None
    assert parity["executed_on"] == "TensorRT-RTX"
    report = crossfuse.verify(bundle.path, "tensorrt-rtx")
    assert report.passed
    with runtime.load(bundle.path, "tensorrt-rtx") as session:
        inputs = load_reference(bundle.path / "reference.npz").points[0].inputs
        first = session.run(**inputs)
        for _ in range(3):
            again = session.run(**inputs)
        for output, array in first.items():
            np.testing.assert_array_equal(again[output], array)


@pytest.mark.gpu
def test_device_arrays_go_in_and_out_without_host_copies(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    bundle = crossfuse.export("cross_modal_attention", tmp_path / "bundle", size="tiny")
    try:
        crossfuse.build(bundle.path, "tensorrt-rtx", compute_capabilities=[Gpu().capability])
    except InputError as error:
        pytest.skip(f"TensorRT-RTX has no engines for this GPU: {error}")
    point = load_reference(bundle.path / "reference.npz").points[0]
    with runtime.load(bundle.path, "tensorrt-rtx") as session:
        outputs = session.run(**{n: torch.from_numpy(a).cuda() for n, a in point.inputs.items()})
        got = torch.from_dlpack(outputs["fused"])
        assert got.is_cuda
        np.testing.assert_allclose(got.cpu().numpy(), point.outputs["fused"], atol=0.02)
