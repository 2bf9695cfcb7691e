"""Errors at the command line: exit codes, objects for ``--json``, terminals and pipes of every
kind, and absent packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from crossfuse.bundle.store import Bundle
from crossfuse.cli import main
from crossfuse.core.requirements import EXTRAS
from crossfuse.models.registry import zoo_spec

NAME = "cross_modal_attention"
ROOT = Path(crossfuse.__file__).parent
PLAIN = {
    "HOME": os.environ.get("HOME", "/"),
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT.parent),
}
"""An environment without any variable that changes how Python prints."""

FACTORY = """
import torch, crossfuse

def fails():
    return {}["weights"]

def ends():
    raise SystemExit("no weights")

class Model(torch.nn.Module):
    def forward(self, x):
        assert x.shape[0] == 0, "only empty"
        return x

def model():
    return crossfuse.ModelSpec(Model(), {"x": torch.ones(2, 3)})
"""


@pytest.fixture(scope="module")
def workplace(
    zoo_bundle: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "bundle").symlink_to(zoo_bundle(NAME).path)
    shutil.copytree(zoo_bundle(NAME).path, folder / "copy")
    (folder / "mine.py").write_text(FACTORY)
    np.savez(folder / "in.npz", **{k: v.numpy() for k, v in zoo_spec(NAME, "tiny").inputs.items()})
    (folder / "broken.npz").write_bytes((folder / "in.npz").read_bytes()[:900])
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "hf" / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )
    (folder / "report.json").write_text("{}")
    return folder


def start(
    *arguments: object,
    cwd: Path,
    code: str = "from crossfuse.cli import main; main()",
    **options: Any,
) -> Any:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": PLAIN,
    } | options
    return subprocess.Popen(command, cwd=cwd, **options)


def run(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, cwd=cwd, **options)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


BAD: dict[str, tuple[str, str, str]] = {
    "no command": ("exprot clip", "usage", "Did you mean 'export'"),
    "no option": ("export clip -o out --tragte onnx", "usage", "Did you mean '--target'"),
    "no argument": ("verify", "usage", "missing argument 'BUNDLE'"),
    "no number": ("export clip -o out --seed x", "usage", "--seed"),
    "too many": ("inspect a b", "usage", "unexpected extra argument"),
    "source": ("export cilp -o out", "input", "Did you mean 'clip'"),
    "source a bundle": ("export bundle -o out", "input", "folder with a bundle"),
    "source a checkpoint": ("export org/name -o out", "input", "hf:org/name"),
    "size": ("export clip --size tiyn -o out", "input", "Did you mean 'tiny'"),
    "target": (
        "export clip --size tiny -o out --target ort-cup",
        "input",
        "Did you mean 'ort-cpu'",
    ),
    "precision": (
        "export clip --size tiny -o out --precision fp61",
        "input",
        "Did you mean 'fp16'",
    ),
    "context": (
        "export clip --size tiny -o out --context pixel_value",
        "input",
        "Did you mean 'pixel_values'",
    ),
    "dynamic": (
        "export clip --size tiny -o out --dynamic pixel_vales:0=n",
        "input",
        "Did you mean 'pixel_values'",
    ),
    "decode": (
        "export clip --size tiny -o out --decode inputs_ids",
        "input",
        "Did you mean 'input_ids'",
    ),
    "no factory": (
        "export mine.py -o out",
        "input",
        "mine.py:fails or mine.py:ends or mine.py:model",
    ),
    "factory": ("export mine.py:mdoel -o out", "input", "Did you mean 'model'"),
    "factory fails": (
        "export mine.py:fails -o out",
        "input",
        r"KeyError: 'weights' .*mine.py, line 5",
    ),
    "factory ends": (
        "export mine.py:ends -o out",
        "input",
        r"SystemExit.*no weights.*mine.py, line 8",
    ),
    "model fails": (
        "export mine.py:model -o out",
        "input",
        r"AssertionError: only empty .*mine.py, line 12",
    ),
    "weights": ("export hf:hf -o out", "input", "Git LFS pointer"),
    "no bundle": ("inspect nowhere", "bundle", "crossfuse export SOURCE"),
    "bundle's target": (
        "run bundle --input in.npz --target ort-cp",
        "bundle",
        "Did you mean 'ort-cpu'",
    ),
    "input": ("run bundle --input broken.npz", "input", "damaged, cut or no NPZ"),
    "context file": (
        "run bundle --input in.npz --context broken.npz",
        "input",
        "no context stage|damaged",
    ),
    "rival": ("profile bundle --against egaer", "input", "Did you mean 'eager'"),
    "sweep": ("profile bundle --sweep btach=1", "input", "Did you mean 'batch'"),
    "report": ("profile --compare report.json report.json", "input", "report.json"),
    "html": ("profile bundle --html no/such/folder.html", "input", "folder doesn't exist"),
    "report's folder": ("profile bundle -o .", "input", "is a folder"),
    "other model": ("verify bundle --source clip", "input", "other inputs"),
    "platform": ("package bundle -o out --for trition", "input", "Did you mean 'triton'"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_error_is_a_paragraph_and_with_json_an_object(
    workplace: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    arguments, kind, message = BAD[case]
    monkeypatch.chdir(workplace)
    with pytest.raises(SystemExit) as stop:
        main([*arguments.split(), "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2, err
    error = json.loads(out)["error"]
    assert list(error) == ["kind", "what", "where", "got", "expected", "do"]
    assert error["kind"] == kind
    assert all(value is None or isinstance(value, str) for value in error.values())
    assert re.search(message, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, "one paragraph, no traceback, no progress"
    assert error["what"].rstrip(".") in err
    assert not (workplace / "out").exists()


def test_version_and_nothing(workplace: Path) -> None:
    done = run("--version", cwd=workplace)
    assert (done.returncode, done.stdout) == (0, f"crossfuse {crossfuse.__version__}\n")
    done = run(cwd=workplace)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_failed_parity_is_one_json_document(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        f"from crossfuse.models.registry import zoo_spec\ndef make(): return zoo_spec({NAME!r}, "
        "'tiny', seed=9)\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(zoo_bundle(NAME).path), "--source", f"{source}:make", "--json"])
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (stop.value.code, report["passed"], report["error"]["kind"]) == (1, False, "parity")
    assert "crossfuse verify --bisect" in report["error"]["do"]
    assert "does not compute what the eager model computes" in err


ASCII = {
    "encoding": {"PYTHONIOENCODING": "ascii"},
    "locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "latin": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("how", ASCII)
def test_terminals_without_unicode(workplace: Path, how: str) -> None:
    env = PLAIN | ASCII[how]
    done = run("inspect", "bundle", cwd=workplace, env=env, text=True, encoding="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1..64" in done.stdout
    done = run("inspect", "été-×", cwd=workplace, env=env, encoding="latin-1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no bundle")


def test_names_that_are_no_unicode(workplace: Path) -> None:
    """A path of bytes that no encoding explains, printed on stdout as well."""
    done = run("inspect", b"\xff\xfe".decode("utf-8", "surrogateescape"), "--json", cwd=workplace)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "bundle"


@pytest.mark.parametrize(
    "arguments",
    [["inspect", "bundle"], ["inspect", "bundle", "--json"], ["models"], ["verify", "bundle"]],
)
def test_a_reader_that_goes_away_is_no_error(workplace: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(*arguments, cwd=workplace, stdout=write)
    os.close(write)
    assert done.returncode == 141
    assert "error" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told(workplace: Path) -> None:
    for arguments in (["inspect", "bundle"], ["inspect", "bundle", "--json"], ["models"]):
        with Path("/dev/full").open("w") as full:
            done = run(*arguments, cwd=workplace, stdout=full)
        assert done.returncode == 2
        assert done.stderr == (
            "error: No space left on device. Make room on the disk, or choose another one.\n"
        )
    done = run("run", "bundle", "--input", "in.npz", "--output", "/dev/full/out.npz", cwd=workplace)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the output file can't be written")


# What runs the tests may have had interrupts ignored, which processes inherit.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import crossfuse.core.npz
def slow(path):
    sys.stderr.write("begun\\n"); sys.stderr.flush()
    time.sleep(60)
crossfuse.core.npz.load_arrays = slow
from crossfuse.cli import main
main()
"""


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_is_one_line_and_130(workplace: Path, as_json: bool) -> None:
    process = start(
        "run", "bundle", "--input", "in.npz", *["--json"] * as_json, cwd=workplace, code=SLOW
    )
    assert process.stderr.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted.\n")
    assert (json.loads(out)["error"]["kind"] if as_json else out) == (
        "interrupted" if as_json else ""
    )


def test_debug_shows_the_cause(workplace: Path) -> None:
    done = run(
        "export", "mine.py:fails", "-o", "out", cwd=workplace, env=PLAIN | {"CROSSFUSE_DEBUG": "1"}
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "KeyError: 'weights'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the factory raised KeyError")


FLUSHES = """
from crossfuse.commands.output import Output
import sys, time
output = Output(as_json=sys.argv[1] == "json")
output.result({"a": 1}, lambda: output.line("a line"))
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["json", "lines"])
def test_results_are_flushed(tmp_path: Path, how: str) -> None:
    """A command that goes on (a server) has said its result by then, whatever Python buffers."""
    process = start(how, cwd=tmp_path, code=FLUSHES)
    try:
        begin = time.monotonic()
        assert process.stdout.readline()
        assert time.monotonic() - begin < 50
    finally:
        process.kill()
        process.communicate()


# -- absent packages


WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from crossfuse.cli import main
main()
"""
EXPORT = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "transformers")
SERVE = ("ray", "pyarrow", "yaml")
BARE = ("typer", "rich", "onnxruntime", *EXPORT, *SERVE, "jinja2", "openvino")

ABSENT: dict[str, tuple[tuple[str, ...], str, str]] = {
    "bare": (BARE, "inspect bundle", r"crossfuse\[cpu\]"),
    "bare version": (BARE, "--version", r"crossfuse\[cpu\]"),
    "rich": (("rich",), "inspect bundle", r"crossfuse\[cli\]"),
    "export": (EXPORT, "export clip -o out", r"crossfuse\[export\]"),
    "build": (EXPORT, "build copy --target onnx", r"crossfuse\[export\]"),
    "verify": (EXPORT, "verify bundle --source clip", r"crossfuse\[export\]"),
    "bisect": (EXPORT, "verify bundle --bisect", r"crossfuse\[export\]"),
    "transformers": (("transformers",), "export hf:hf -o out", r"crossfuse\[hf\]"),
    "engine": (("onnxruntime",), "run bundle --input in.npz", r"crossfuse\[cpu\]"),
    "engine by name": (("onnxruntime",), "verify bundle --target ort-cpu", r"crossfuse\[cpu\]"),
    "engine to export": (("onnxruntime",), "export clip --size tiny -o out", r"crossfuse\[cpu\]"),
    "serve": (SERVE, "serve bundle", r"crossfuse\[serve\]"),
    "config": (("yaml",), "serve bundle --emit-config c.yaml", r"crossfuse\[serve\]"),
    "map": (SERVE, "map bundle --input in --output out", r"crossfuse\[serve\]"),
    "html": (("jinja2",), "profile bundle --html page.html", r"crossfuse\[report\]"),
}


@pytest.mark.parametrize("case", ABSENT)
def test_what_to_install_is_one_paragraph(workplace: Path, case: str) -> None:
    import re

    absent, arguments, message = ABSENT[case]
    done = run(",".join(absent), *arguments.split(), "--json", cwd=workplace, code=WITHOUT)
    assert done.returncode == 2, done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert json.loads(done.stdout)["error"]["kind"] in ("package", "bundle", "input")


@pytest.mark.parametrize(
    "arguments",
    [
        "--version",
        "models",
        "run bundle --input in.npz",
        "inspect bundle",
        "verify bundle",
        "package bundle -o {}",
    ],
)
def test_the_cpu_extra_is_enough_where_bundles_run(
    workplace: Path, tmp_path: Path, arguments: str
) -> None:
    absent = ",".join((*EXPORT, *SERVE, "jinja2", "openvino"))
    done = run(
        absent, *arguments.format(tmp_path / "repository").split(), cwd=workplace, code=WITHOUT
    )
    assert done.returncode == 0, done.stderr


def test_extras_bring_the_command_line() -> None:
    """The declarations themselves: whoever installs an engine, or what exports or serves, can run
    the commands."""
    import tomllib
    from importlib.metadata import metadata

    pyproject = ROOT.parent.parent / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("installed without its sources")
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    for extra in ("cpu", "gpu", "rtx", "export", "serve"):
        assert "crossfuse[cli]" in extras[extra], extra
    assert set(EXTRAS.values()) <= set(extras)
    assert metadata("crossfuse")["Name"] == project["name"]


# -- telemetry


def test_onnx_runtime_is_imported_in_one_place() -> None:
    import ast

    found = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                found.append(path.name)
    assert found == []


SPY = """
import os, sys
os.makedirs("fake", exist_ok=True)
text = "str(os.environ.get('ORT_DISABLE_TELEMETRY'))"
with open("fake/onnxruntime.py", "w") as file:
    file.write(f"import os\\nraise ImportError('telemetry ' + {text})\\n")
sys.path.insert(0, "fake")
from crossfuse.cli import main
main()
"""


@pytest.mark.parametrize(("user", "seen"), [(None, "1"), ("0", "0"), ("", "")])
def test_telemetry_is_off_before_the_import_unless_the_user_chose(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path, user: str | None, seen: str
) -> None:
    env = PLAIN | ({} if user is None else {"ORT_DISABLE_TELEMETRY": user})
    done = run(
        "verify", zoo_bundle(NAME).path, "--target", "ort-cpu", cwd=tmp_path, code=SPY, env=env
    )
    assert done.returncode == 2
    assert f"telemetry {seen}" in done.stderr
