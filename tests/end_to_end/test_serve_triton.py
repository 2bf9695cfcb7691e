"""A model repository, loaded by the real tritonserver and asked with its own client."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from captioner import IMAGES, export_captioner
from crossfuse import InputError, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.cli import main
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import EngineError
from crossfuse.serve.triton.config import ModelConfig, WarmUp
from crossfuse.serve.triton.repository import TritonOptions, write_repository

ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".venv-triton"


def test_config_text() -> None:
    """As Triton's documentation of the model configuration has it."""
    inputs = [
        TensorSpec("image", "float32", ("batch", 3, "height", 8)),
        TensorSpec("flag", "bool", ("batch",)),
    ]
    outputs = [TensorSpec("score", "float16", ("batch",))]
    whole = ModelConfig(
        "m", "python", inputs, outputs, max_batch=0, optional=["image"], parameters={"a": 'b"c'}
    ).text()
    assert 'name: "m"\nbackend: "python"\nmax_batch_size: 0\n' in whole
    assert '{ name: "image" data_type: TYPE_FP32 dims: [ -1, 3, -1, 8 ] optional: true },' in whole
    assert '{ name: "flag" data_type: TYPE_BOOL dims: [ -1 ] }\n' in whole
    assert 'parameters { key: "a" value: { string_value: "b\\"c" } }' in whole
    assert "dynamic_batching" not in whole
    shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, 4, 8), "flag": (1,)}
    warm = WarmUp({"image": "input-0", "flag": "input-1"}, shapes)
    batched = ModelConfig(
        "m", "onnxruntime_onnx", inputs, outputs, max_batch=8, queue_ms=1.5, warm_up=warm, gpu=True
    ).text()
    assert 'platform: "onnxruntime_onnx"\nmax_batch_size: 8\n' in batched
    assert '{ name: "image" data_type: TYPE_FP32 dims: [ 3, -1, 8 ] },' in batched
    assert '{ name: "flag" data_type: TYPE_BOOL dims: [ 1 ] reshape: { shape: [] } }' in batched
    assert "dynamic_batching { max_queue_delay_microseconds: 1500 }" in batched
    assert "count: 1 kind: KIND_GPU" in batched
    assert (
        'key: "image" value: { data_type: TYPE_FP32 dims: [ 3, 4, 8 ] input_data_file: "input-0" }'
        in batched
    )


def test_repository_holds_a_whole_bundle(
    bundle_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models"
    with pytest.raises(SystemExit) as done:
        main(
            [
                "package",
                str(bundle_copy),
                "--for",
                "triton",
                "-o",
                str(out),
                "--name",
                "cross",
                "--target",
                "ort-cpu",
                "--json",
            ]
        )
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["cross", "cross-onnxruntime"]
    with (
        runtime.load(out / "cross" / "1" / "bundle", "ort-cpu") as session,
        runtime.load(bundle_copy, "ort-cpu") as expected,
    ):
        inputs = {
            s.name: np.ones([2 if isinstance(d, str) else d for d in s.shape], s.dtype)
            for s in session.inputs
        }
        for name, array in expected.run(**inputs).items():
            np.testing.assert_array_equal(session.run(**inputs)[name], array)
    import onnxruntime

    native = onnxruntime.InferenceSession(
        out / "cross-onnxruntime" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [i.name for i in native.get_inputs()] == [s.name for s in expected.inputs]
    assert "tritonserver" in (out / "README.md").read_text()
    # Written again it replaces itself; what isn't ours stays.
    write_repository(bundle_copy, out, TritonOptions("cross"))
    (out / "theirs").mkdir()
    (out / "theirs" / "config.pbtxt").write_text('name: "theirs"\n')
    with pytest.raises(InputError, match="didn't write"):
        write_repository(bundle_copy, out, TritonOptions("theirs"))
    with pytest.raises(InputError, match="name"):
        write_repository(bundle_copy, out, TritonOptions("../evil"))
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "cross",
        "cross-onnxruntime",
        "theirs",
    ]


@contextmanager
def tritonserver(repository: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """The server on free ports of the loopback interface; its HTTP and metrics ports."""
    serving = pytest.importorskip("serving", reason="tritonclient is not installed")
    if not (TRITON / "bin" / "python").exists():
        pytest.skip("tritonserver is not installed: make triton")
    site = next((TRITON / "lib").glob("python*/site-packages"))
    home = site / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(home / "backends" / "python", backends / "python")
    version = site.parent.name.removeprefix("python")
    stub = shutil.copy(
        home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python"
    )
    os.chmod(stub, 0o755)  # noqa: PTH101
    port, metrics = serving.free_port(), serving.free_port()
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT / 'src'}",
        "VIRTUAL_ENV": str(TRITON),
        "PATH": f"{TRITON / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    local = [
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
    ]
    server = shutil.copy(home / "bin" / "tritonserver", folder / "tritonserver")
    os.chmod(server, 0o755)  # noqa: PTH101
    command = [
        server,
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--allow-grpc=false",
        *local,
    ]
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for model in sorted(p.name for p in repository.iterdir() if p.is_dir()):
            try:
                serving.wait_until_ready(port, model)
            except AssertionError:
                raise AssertionError(log.read_text()[-4000:]) from None
        yield port, metrics
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qformer", "blip_retrieval"])
def test_tritonserver_answers_as_the_session_does(
    tmp_path: Path, shared_bundle: Callable[..., Bundle], name: str
) -> None:
    serving = pytest.importorskip("serving", reason="tritonclient is not installed")
    if name == "qformer":
        bundle = shared_bundle(name, size="tiny")
    else:
        bundle = shared_bundle(f"coverage/{name}")
    write_repository(bundle.path, tmp_path / "models", TritonOptions(name))
    with (
        runtime.load(bundle.path) as session,
        tritonserver(tmp_path / "models", tmp_path) as (port, metrics),
    ):
        requests = requests_for(session)
        floating = session.stages["context"].inputs[0].name
        serving.check_metadata(port, name, session)
        serving.check_answers(port, name, session, requests)
        context = tuple(s.name for s in session.stages["context"].inputs)
        serving.check_context_ids(port, name, session, requests[0], context)
        serving.check_refusals(port, name, session, requests[0], floating, "input_ids")
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as page:
            counted = page.read().decode()
        hits = next(
            line
            for line in counted.splitlines()
            if line.startswith("crossfuse_context_cache_hits{")
        )
        assert float(hits.split()[-1]) >= len(requests)


@pytest.mark.slow
def test_tritonserver_merges_requests_of_whole_models(tmp_path: Path) -> None:
    serving = pytest.importorskip("serving", reason="tritonclient is not installed")
    bundle = crossfuse.export("cross_modal_attention", tmp_path / "bundle", size="tiny", whole=True)
    write_repository(
        bundle.path, tmp_path / "models", TritonOptions("cross", queue_ms=20, native=False)
    )
    config = (tmp_path / "models" / "cross" / "config.pbtxt").read_text()
    assert "max_batch_size: 64" in config
    with (
        runtime.load(bundle.path) as session,
        tritonserver(tmp_path / "models", tmp_path) as (port, metrics),
    ):
        serving.check_answers(port, "cross", session, requests_for(session), callers=8)
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as page:
            lines = page.read().decode().splitlines()
        calls, rows = (
            float(
                next(
                    line for line in lines if line.startswith(f"crossfuse_batch_rows_{what}{{")
                ).split()[-1]
            )
            for what in ("count", "sum")
        )
        assert rows > calls


def requests_for(session: runtime.Session) -> list[dict[str, np.ndarray]]:
    """Several shapes; contexts repeat."""
    made = []
    for seed, (contexts, fan_out, tokens) in enumerate(
        [(1, 1, 5), (1, 3, 5), (2, 2, 7), (1, 1, 5), (2, 1, 4), (1, 4, 6)]
    ):
        rng = np.random.default_rng(contexts)
        sizes = {
            "batch": contexts * fan_out,
            "contexts": contexts,
            "image_tokens": 6,
            "text": tokens,
            "tokens": tokens,
        }
        arrays = {}
        for spec in session.inputs:
            shape = [sizes.get(d, tokens) if isinstance(d, str) else d for d in spec.shape]
            if spec.dtype == "float32":
                arrays[spec.name] = rng.standard_normal(shape).astype(np.float32)
            elif "mask" in spec.name:
                arrays[spec.name] = np.ones(shape, spec.dtype)
            else:
                arrays[spec.name] = (
                    np.random.default_rng(seed).integers(3, 50, shape).astype(spec.dtype)
                )
        made.append(arrays)
    return made


@pytest.mark.slow
def test_tritonserver_generates(tmp_path: Path) -> None:
    """By both paths of the generate extension, several at once, each as alone."""
    pytest.importorskip("serving", reason="tritonclient is not installed")
    bundle = export_captioner(tmp_path / "bundle", 40)
    names = write_repository(bundle, tmp_path / "models", TritonOptions("m", slots=2))
    assert names == ["m", "m-generate"]
    rng = np.random.default_rng(0)
    asked = [
        (i % 4, rng.integers(0, 50, 2 + i).tolist(), {"max_new_tokens": 3 + 4 * i})
        for i in range(6)
    ]
    with runtime.load(bundle) as session:
        expected = [
            runtime.generate(session, session.encode(image=IMAGES[[image]]), [prompt], **settings)
            .new_tokens[0].tolist()
            for image, prompt, settings in asked
        ]  # fmt: skip

    def events(path: str, number: int, **more: Any) -> list[dict[str, Any]]:
        image, prompt, settings = asked[number]
        body = {"image": IMAGES[image].ravel().tolist(), "ids": prompt,
                "parameters": {**settings, **more}}  # fmt: skip
        url = f"http://127.0.0.1:{port}/v2/models/m-generate/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.strip()]
        return [json.loads(line) for line in lines]

    def tokens(found: list[dict[str, Any]]) -> list[int]:
        return [token for event in found for token in np.atleast_1d(event["tokens"]).tolist()]

    with tritonserver(tmp_path / "models", tmp_path) as (port, _):
        numbers = range(len(asked))
        with ThreadPoolExecutor(len(asked)) as pool:
            whole = list(pool.map(lambda i: events("generate", i), numbers))
            streams = list(pool.map(lambda i: events("generate_stream", i, stream=True), numbers))
        assert [len(one) for one in whole] == [1] * len(asked)
        assert [tokens(one) for one in whole] == expected
        assert [tokens(one) for one in streams] == expected
        assert len(streams[-1]) > 3
        assert [("ended" in one) for one in streams[-1]][-2:] == [False, True]
        with pytest.raises(urllib.error.HTTPError) as refused:
            events("generate", 0, num_beams=2)
        assert "beams" in refused.value.read().decode()


class FakeModule:
    """What the Python backend's module offers, as far as a request goes; an attribute that is
    missing can't be had."""

    class TritonError(Exception):
        NOT_FOUND, INVALID_ARG, INTERNAL = range(3)

        def __init__(self, text: str, code: int) -> None:
            super().__init__(text)
            self.code = code

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            if array.dtype == bool:
                raise RuntimeError("no such tensor")
            self._name, self._array = name, array

        def name(self) -> str:
            return self._name

        def as_numpy(self) -> np.ndarray:
            if self._name == "broken":
                raise OSError("gone")
            return self._array

    class InferenceResponse:
        def __init__(self, outputs: tuple[Any, ...] = (), error: Any = None) -> None:
            self.outputs, self.error = outputs, error

    class Request:
        def __init__(self, arrays: dict[str, np.ndarray], parameters: str = "") -> None:
            self._tensors = [FakeModule.Tensor(name, array) for name, array in arrays.items()]
            self._parameters = parameters

        def inputs(self) -> list[FakeModule.Tensor]:
            return self._tensors

        def parameters(self) -> str:
            return self._parameters


def test_what_the_server_hands_over_is_checked_by_itself(
    zoo_bundle: Callable[[str], crossfuse.Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the server: whatever a request holds, and whatever reading or answering it raises, is
    its own answer."""
    from crossfuse.serve.request_engine import RequestEngine

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeModule)
    found = importlib.util.find_spec("crossfuse.serve.triton.model")
    assert found is not None
    assert found.loader is not None
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    with runtime.load(zoo_bundle("cross_modal_attention").path, "ort-cpu") as session:
        model = loaded.TritonPythonModel()
        model._engine = RequestEngine(session)
        good = {
            s.name: np.ones([2 if isinstance(d, str) else d for d in s.shape], s.dtype)
            for s in session.inputs
        }
        first = session.inputs[0].name
        bad = [
            FakeModule.Request(good | {"broken": good[first]}),
            FakeModule.Request(good | {"self": good[first]}),
            FakeModule.Request({}),
            FakeModule.Request(good, "{"),
            FakeModule.Request(good, '{"context_id": 3}'),
            FakeModule.Request(good, '{"context_id": "cat"}'),
            FakeModule.Request(good | {first: good[first][:1]}),
            FakeModule.Request({name: array[:0] for name, array in good.items()}),
            object(),
        ]
        asked = [FakeModule.Request(good), *bad, FakeModule.Request(good, "[]")]
        got = model.execute(asked)
        expected = session.run(good)

        def failing(*args: Any) -> Any:
            raise EngineError("the GPU could not allocate 12 bytes")

        monkeypatch.setattr(session, "query", failing)
        monkeypatch.setattr(session, "run", failing)
        (failed,) = model.execute([FakeModule.Request(good)])
    assert failed.error.code == FakeModule.TritonError.INTERNAL
    assert len(got) == len(asked)
    for response in (got[0], got[-1]):
        assert response.error is None
        for tensor in response.outputs:
            np.testing.assert_allclose(tensor.as_numpy(), expected[tensor.name()], rtol=1e-5)
    assert [response.error.code for response in got[1:-1]] == [
        FakeModule.TritonError.INVALID_ARG
    ] * len(bad)
    assert loaded._answered({"y": np.array([True])}).error.code == FakeModule.TritonError.INTERNAL


def test_serving_without_triton_needs_no_triton() -> None:
    """The Python backend's module exists only in the server."""
    code = (
        "import sys, crossfuse.serve.triton.repository; assert 'triton_python_backend_utils' "
        "not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
