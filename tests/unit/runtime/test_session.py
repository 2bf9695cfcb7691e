"""The runtime: correct under threads, strict about inputs, zero-copy, and free of PyTorch and
ONNX."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from crossfuse import BundleError, InputError, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.models.registry import zoo_spec
from crossfuse.runtime import Session, SessionOptions

NAME = "cross_modal_attention"


@pytest.fixture(scope="module")
def session(zoo_bundle: Callable[[str], Bundle]) -> Iterator[Session]:
    with runtime.load(zoo_bundle(NAME).path, "ort-cpu", SessionOptions(threads=1)) as opened:
        yield opened


def inputs(batch: int = 2, length: int = 3, keys: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    sizes = {"batch": batch, "length": length, "context_length": keys}
    return {
        name: tensor.numpy() for name, tensor in zoo_spec(NAME, "tiny").sample(sizes, seed).items()
    }


FORBIDDEN = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "transformers",
    "polygraphy",
    "typer",
    "rich",
)


def test_runs_where_pytorch_cannot_be_imported(zoo_bundle: Callable[[str], Bundle]) -> None:
    code = f"""
import sys
for name in {FORBIDDEN!r}:
    sys.modules[name] = None
import numpy as np
from crossfuse import runtime
session = runtime.load({str(zoo_bundle(NAME).path)!r})
a, b = np.ones((1, 2, 32), "f4"), np.ones((1, 3, 24), "f4")
out = session.run(a=a, b=b, b_mask=np.ones((1, 3), "i8"))
print(session.target, {{k: v.shape for k, v in out.items()}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ort-cpu {'fused': (1, 2, 32), 'context': (1, 2, 32)}", (
        done.stderr
    )


def test_import_is_light() -> None:
    code = (
        "import sys, crossfuse, crossfuse.runtime; print([n for n in sys.argv[1:] if n in "
        "sys.modules])"
    )
    heavy = [*FORBIDDEN, "onnxruntime", "safetensors", "jsonschema"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_verify_needs_no_pytorch(zoo_bundle: Callable[[str], Bundle]) -> None:
    code = f"""
import sys
for name in {FORBIDDEN!r}:
    sys.modules[name] = None
import crossfuse
print(crossfuse.verify({str(zoo_bundle(NAME).path)!r}).passed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_describes_itself(session: Session) -> None:
    assert [str(s) for s in session.inputs] == [
        "a: float32[batch, length, 32]",
        "b: float32[batch, context_length, 24]",
        "b_mask: int64[batch, context_length]",
    ]
    assert [s.name for s in session.outputs] == ["fused", "context"]
    assert list(session.stages) == ["model"]
    assert "ort-cpu on CPUExecutionProvider" in repr(session)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i.pop("a"),
            r"names are wrong: got missing a, expected a: float32\[batch, length, 32\]",
        ),
        (lambda i: i.update(c=i["a"]), "unknown c"),
        (
            lambda i: i.update(a=i["a"].astype("f8")),
            r"wrong dtype \(a\): got float64, expected float32.*astype",
        ),
        (lambda i: i.update(a=i["a"][0]), r"wrong rank \(a\)"),
        (lambda i: i.update(a=i["a"][..., :31]), r"wrong size \(a, axis 2\): got 31"),
        (
            lambda i: i.update(a=np.concatenate([i["a"]] * 300, 1)),
            "'length' is outside its range.*got 900.*at most 512",
        ),
        (lambda i: i.update(a=i["a"][:, :0]), "'length' is outside its range.*got 0"),
        (lambda i: i.update(b=i["b"][:1]), "disagree about dimension 'batch'"),
        (lambda i: i.update(a=[1.0]), "not an array.*got list"),
        (lambda i: i.update(a=i["a"].astype(">f4")), "wrong dtype"),
    ],
)
def test_bad_inputs_are_refused_by_name(session: Session, change: Callable, message: str) -> None:
    given = inputs()
    change(given)
    with pytest.raises(InputError, match=message):
        session.run(**given)


def test_ids_outside_their_table_are_refused(zoo_bundle: Callable[[str], Bundle]) -> None:
    with runtime.load(zoo_bundle("clip").path) as session:
        given = {k: v.numpy() for k, v in zoo_spec("clip", "tiny").inputs.items()}
        given["input_ids"] = given["input_ids"] + 1000
        with pytest.raises(InputError, match=r"an index outside its table \(input_ids\[0, 0\]\)"):
            session.run(**given)


def test_layouts_and_dlpack_give_the_same(session: Session) -> None:
    given = inputs()
    expected = session.run(**given)["fused"]
    transposed = given | {"a": np.asfortranarray(given["a"])}
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    strided = tensors | {"b": tensors["b"].mT.contiguous().mT}
    for variant in (transposed, tensors, strided):
        np.testing.assert_array_equal(session.run(**variant)["fused"], expected)


def test_contiguous_inputs_are_not_copied(session: Session) -> None:
    given = inputs()
    tensor = torch.from_numpy(given["a"])
    feeds = session._check(given | {"a": tensor})
    assert feeds["a"].ctypes.data == tensor.data_ptr()
    assert feeds["b"] is given["b"]


def test_threads_share_a_session(session: Session) -> None:
    cases = [inputs(1 + i % 3, 1 + i % 4, 1 + i % 5, seed=i) for i in range(40)]
    expected = [session.run(**case)["fused"] for case in cases]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            got = list(pool.map(lambda case: session.run(**case)["fused"], cases))
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_binding_reads_and_writes_in_place(session: Session) -> None:
    first, second = inputs(seed=1), inputs(seed=2)
    expected = session.run(**second)
    bound = {name: array.copy() for name, array in first.items()}
    binding = session.bind(**bound)
    np.testing.assert_array_equal(binding.outputs["fused"], session.run(**first)["fused"])
    address = binding.outputs["fused"].ctypes.data
    for name, array in second.items():
        bound[name][...] = array
    outputs = binding.run()
    assert outputs["fused"].ctypes.data == address
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)
    with pytest.raises(InputError, match="contiguous"):
        session.bind(**(first | {"a": np.asfortranarray(first["a"])}))


def test_outputs_are_the_callers_own(session: Session) -> None:
    given = inputs()
    first = session.run(**given)["fused"]
    kept = first.copy()
    session.run(**inputs(seed=7))
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    np.testing.assert_array_equal(session.run(**given)["fused"], kept)


def test_close(zoo_bundle: Callable[[str], Bundle]) -> None:
    session = runtime.load(zoo_bundle(NAME).path)
    session.close()
    session.close()
    assert "closed" in repr(session)
    with pytest.raises(InputError, match="session is closed"):
        session.run(**inputs())
    with runtime.load(zoo_bundle(NAME).path) as again:
        worker = threading.Thread(target=lambda: [again.run(**inputs()) for _ in range(50)])
        worker.start()
        worker.join()


def test_options(zoo_bundle: Callable[[str], Bundle]) -> None:
    path, given = zoo_bundle(NAME).path, inputs()
    expected = runtime.load(path).run(**given)["fused"]
    for options in (
        SessionOptions(threads=2),
        SessionOptions(inter_op_threads=2),
        SessionOptions(spin=False),
    ):
        np.testing.assert_allclose(
            runtime.load(path, options=options).run(**given)["fused"], expected, atol=1e-6
        )
    with pytest.raises(InputError, match="threads"):
        SessionOptions(threads=0)


def test_targets(zoo_bundle: Callable[[str], Bundle]) -> None:
    path = zoo_bundle(NAME).path
    assert runtime.load(path).target in ("ort-cpu", "ort-cuda")
    on_cpu = runtime.load(path, "ort-cuda", SessionOptions(provider="CPUExecutionProvider"))
    assert on_cpu.provider == "CPUExecutionProvider"
    with pytest.raises(BundleError, match="no such target"):
        runtime.load(path, "tensorrt")
    with pytest.raises(BundleError, match="no target of the bundle can run here"):
        runtime.best_target(["tensorrt"])
    with pytest.raises(BundleError, match="has no NoSuchProvider"):
        runtime.load(path, "ort-cpu", SessionOptions(provider="NoSuchProvider"))


def test_absent_engine(zoo_bundle: Callable[[str], Bundle]) -> None:
    code = f"""
import sys, importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "onnxruntime" else found(name, *a)
from crossfuse import runtime, BundleError
for target in (None, "ort-cpu"):
    try:
        runtime.load({str(zoo_bundle(NAME).path)!r}, target)
    except BundleError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.strip().splitlines()
    assert "no target of the bundle can run here" in first
    assert "needs ONNX Runtime, which is not installed" in second
    assert "pip install" in second


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cross_modal_attention", "clip", "vilt", "qformer", "dalle"])
def test_cuda_parity(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    import crossfuse

    report = crossfuse.verify(zoo_bundle(name).path, "ort-cuda")
    assert report.passed
    assert report.executed_on == "CUDAExecutionProvider"


@pytest.mark.gpu
def test_device_arrays_stay_on_the_device(zoo_bundle: Callable[[str], Bundle]) -> None:
    with runtime.load(zoo_bundle(NAME).path, "ort-cuda") as session:
        outputs = session.run(**{k: torch.from_numpy(v).cuda() for k, v in inputs().items()})
        tensor = torch.from_dlpack(outputs["fused"])
        assert tensor.is_cuda
        np.testing.assert_allclose(
            tensor.cpu().numpy(), session.run(**inputs())["fused"], atol=1e-3
        )
