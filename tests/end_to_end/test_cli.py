"""The command line as a user meets it: exit codes, JSON, and errors of one paragraph.

What needs PyTorch is called in this process, which has imported it, through `main`, as the script
does; with the slow tests, as processes of their own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossfuse.bundle.store import Bundle
from crossfuse.cli import main
from crossfuse.models.registry import ZOO, zoo_spec

NAME = "cross_modal_attention"

Runs = Callable[..., subprocess.CompletedProcess[str]]
"""Arguments → what came of the command in the working folder."""


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crossfuse", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=["in process", pytest.param("process", marks=pytest.mark.slow)])
def crossfuse(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Runs:
    if request.param == "process":
        return process

    def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, arguments)))
        code = stop.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return in_process


def npz(path: Path) -> Path:
    np.savez(path, **{k: v.numpy() for k, v in zoo_spec(NAME, "tiny").inputs.items()})
    return path


def test_export_build_verify_run_inspect(crossfuse: Runs, tmp_path: Path) -> None:
    done = crossfuse("export", NAME, "-o", tmp_path / "b", "--seed", 3, "--size", "tiny")
    assert done.returncode == 0, done.stderr
    assert "1 attentions (1 cross); 1 fused in ort-cpu" in done.stdout
    assert "passed at 9 points, 1 of them given" in done.stdout
    assert "tracing with torch.export" in done.stderr

    done = crossfuse("build", tmp_path / "b", "--target", "onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["targets"]) == {"ort-cpu", "onnx"}

    done = crossfuse("verify", tmp_path / "b", "--target", "onnx", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["passed"], report["target"]) == (0, True, "onnx")
    assert report["outputs"]["fused"]["cosine"] > 0.999999

    given = npz(tmp_path / "in.npz")
    done = crossfuse(
        "run", tmp_path / "b", "--input", given, "--output", tmp_path / "out.npz", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["fused"] == {
        "dtype": "float32",
        "shape": [2, 7, 32],
    }
    with np.load(tmp_path / "out.npz") as outputs:
        assert sorted(outputs.files) == ["context", "fused"]

    done = crossfuse("inspect", tmp_path / "b")
    assert done.returncode == 0
    for text in (
        "context:attention.key",
        "context_length",
        "Attention",
        "weights.bin",
        "passed",
    ):
        assert text in done.stdout
    done = crossfuse("inspect", tmp_path / "b", "--json")
    assert json.loads(done.stdout)["source"] == {
        "kind": "zoo",
        "name": NAME,
        "size": "tiny",
        "seed": 3,
    }


def test_models_one_line_each() -> None:
    done = process("models")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(ZOO)
    listed = json.loads(process("models", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(ZOO)


FACTORY = """
import torch, crossfuse
from torch import nn

class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.returned = {returned}
    def forward(self, x, y):
        out, weights = self.attention(x, y, y, need_weights=self.returned)
        return (out, weights) if self.returned else out

def make():
    torch.manual_seed(0)
    inputs = dict(x=torch.randn(2, 3, 16), y=torch.randn(2, 4, 16))
    return crossfuse.ModelSpec(Cross().eval(), inputs)

def raises():
    raise RuntimeError("no weights today")

def other():
    return 3
"""


def test_own_model_from_a_file_with_dynamic_axes(
    crossfuse: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY.format(returned=False))
    axes = [
        "--dynamic",
        "x:0=batch:1:8",
        "--dynamic",
        "y:0=batch",
        "--dynamic",
        "x:1=length",
        "--dynamic",
        "y:1=keys",
    ]
    done = crossfuse("export", "mine.py:make", "-o", "b", *axes, "--context", "y", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["dims"]["batch"] == {"min": 1, "max": 8}
    assert manifest["context"] == ["y"]
    assert [row["fused"]["ort-cpu"] for row in manifest["ledger"]] == ["Attention"]


def test_unfused_attention_is_a_failed_check(
    crossfuse: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY.format(returned=True))
    done = crossfuse("export", "mine.py:make", "-o", "b")
    assert done.returncode == 1
    assert "1 of 1 attentions did not fuse: attention: " in done.stderr
    assert "--allow-unfused" in done.stderr
    assert not (tmp_path / "b").exists()
    done = crossfuse("export", "mine.py:make", "-o", "b", "--allow-unfused")
    assert done.returncode == 0, done.stderr
    assert "warning: attention: " in done.stderr
    assert "not captured" in done.stdout


BAD: dict[str, tuple[list[str], str]] = {
    "unknown zoo name": (["export", "klip", "-o", "out"], "unknown source: got 'klip'"),
    "unknown size": (["export", "clip", "-o", "out", "--size", "huge"], "unknown size"),
    "unknown target": (
        ["export", "clip", "-o", "out", "--target", "tpu"],
        "unknown target: got 'tpu'",
    ),
    "unknown precision": (
        ["export", "clip", "-o", "out", "--precision", "int3"],
        "unknown precision.*got 'int3'",
    ),
    "another target's precision": (
        ["export", "clip", "-o", "out", "--target", "onnx", "--precision", "fp16"],
        "can't be built in this precision",
    ),
    "unwritable output": (["export", "clip", "-o", "/proc/none/out"], "can't be written"),
    "bad dynamic": (
        ["export", "clip", "-o", "out", "--dynamic", "pixels"],
        "--dynamic can't be read",
    ),
    "unknown dynamic input": (
        ["export", "clip", "-o", "out", "--dynamic", "x:0=n"],
        "dynamic names an input",
    ),
    "unknown context": (
        ["export", "clip", "-o", "out", "--context", "x"],
        "context names an input",
    ),
    "missing checkpoint": (
        ["export", "clip", "-o", "out", "--checkpoint", "nowhere"],
        "no such file",
    ),
    "missing module": (["export", "no.such.module:make", "-o", "out"], "can't be imported"),
    "missing file": (["export", "none.py:make", "-o", "out"], "doesn't exist"),
    "raising factory": (
        ["export", "mine.py:raises", "-o", "out"],
        "RuntimeError: no weights today",
    ),
    "wrong factory": (["export", "mine.py:other", "-o", "out"], "returned something else.*got int"),
    "no factory": (["export", "mine.py:nothing", "-o", "out"], "names no function"),
    "no bundle": (["inspect", "nowhere"], "there is no bundle"),
    "no bundle to build": (["build", "nowhere", "--target", "onnx"], "there is no bundle"),
    "no bundle to verify": (["verify", "nowhere"], "there is no bundle"),
    "absent target": (
        ["run", "bundle", "--input", "in.npz", "--target", "tensorrt"],
        "no such target",
    ),
    "missing input file": (["run", "bundle", "--input", "none.npz"], "input file doesn't exist"),
    "pickled input": (["run", "bundle", "--input", "pickled.npz"], "can't be read"),
    "not an NPZ": (["run", "bundle", "--input", "mine.py"], "can't be read"),
    "one array": (["run", "bundle", "--input", "one.npy"], "one array"),
    "wrong names": (["run", "bundle", "--input", "wrong.npz"], "names are wrong"),
    "unwritable result": (
        ["run", "bundle", "--input", "in.npz", "--output", "/proc/x.npz"],
        "can't be written",
    ),
    "bad threads": (["run", "bundle", "--input", "in.npz", "--threads", "0"], "out of range"),
}


@pytest.fixture(scope="module")
def workplace(
    zoo_bundle: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "bundle").symlink_to(zoo_bundle(NAME).path)
    (folder / "mine.py").write_text(FACTORY.format(returned=False))
    npz(folder / "in.npz")
    np.savez(folder / "pickled.npz", a=np.array([{}], dtype=object))
    np.savez(folder / "wrong.npz", z=np.ones(3))
    np.save(folder / "one.npy", np.ones(3))
    return folder


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "__pycache__")


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_paragraph_and_exit_code_2(
    workplace: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed: `main` is what the script calls."""
    arguments, message = BAD[case]
    monkeypatch.chdir(workplace)
    before = files_in(workplace)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr().err
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2, shown
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert shown.splitlines()[-1] == errors[0], "the error is the last line and has no traceback"
    assert files_in(workplace) == before


def test_usage_errors_and_help() -> None:
    assert process("export", "clip").returncode == 2
    assert process("nonsense").returncode == 2
    done = process("--help")
    assert done.returncode == 0
    for command in ("models", "export", "build", "verify", "run", "inspect"):
        assert command in done.stdout


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFUSE_DEBUG", "1")
    done = process("inspect", "nowhere")
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_failed_parity_exits_1(
    crossfuse: Runs, zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """A reference of another model: the check runs, fails, and says by how much."""
    other = tmp_path / "mine.py"
    other.write_text(
        "from crossfuse.models.registry import zoo_spec\ndef make(): return zoo_spec('dalle', "
        "'tiny', seed=9)\n"
    )
    done = crossfuse(
        "verify", zoo_bundle("dalle").path, "--target", "ort-cpu", "--source", f"{other}:make"
    )
    assert done.returncode == 1, done.stderr
    assert "does not compute what the eager model computes" in done.stderr
    assert "failed" in done.stdout


def test_cuda_target_without_a_gpu_is_refused(
    crossfuse: Runs, zoo_bundle: Callable[[str], Bundle]
) -> None:
    from conftest import _has_gpu

    if _has_gpu():
        pytest.skip("this machine has a GPU")
    done = crossfuse("verify", zoo_bundle("clip").path, "--target", "ort-cuda")
    assert done.returncode == 2
    assert "CUDAExecutionProvider" in done.stderr
    done = crossfuse(
        "verify",
        zoo_bundle("clip").path,
        "--target",
        "ort-cuda",
        "--provider",
        "CPUExecutionProvider",
    )
    assert done.returncode == 0
    assert "not the target's own" in done.stdout
