"""An outsider's package adds a target and a rule for a model type, and every command knows them.

The package is laid out by hand as an installer leaves it: a folder of code, and metadata with entry
points. Only fresh processes that have its folder on their path know it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import crossfuse
from coverage.cases import perturbed
from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.core.target import TARGETS
from crossfuse.errors import BundleError, InputError

CODE = {
    "__init__": "",
    # Neither PyTorch nor onnx_ir here: a runtime imports it.
    "targets": """
from crossfuse import Target

ECHO = Target(
    "echo",
    "the portable graph on an engine of its own",
    lowering="echo_plugin.lowering:lower",
    opener="echo_plugin.engine:open_stage",
    precisions=("fp32", "fp16"),
    provider="Echo",
    requires=("onnxruntime",),
    rank=25,
)
""",
    "lowering": """
from crossfuse.targets.lowering import Lowered
from crossfuse.targets.portable import lower_portable


def lower(model):
    lowered = lower_portable(model)
    return Lowered(lowered.model, dict.fromkeys(lowered.kernels, "echo.Attention"), {})
""",
    "engine": """
import onnxruntime

from crossfuse.runtime.stage import HostStage


class EchoStage(HostStage):
    def __init__(self, request):
        self.session = onnxruntime.InferenceSession(
            str(request.graph), providers=["CPUExecutionProvider"]
        )
        ends = (self.session.get_inputs(), self.session.get_outputs())
        super().__init__("Echo", *([value.name for value in end] for end in ends))

    def run(self, feeds):
        return self.session.run(None, dict(feeds))


def open_stage(request):
    return EchoStage(request)
""",
    "rules": """
from crossfuse.export.sources.huggingface.input_fillers import normal


def vivit(plan, model, takes):
    config = model.config
    size = config.image_size
    plan.add("pixel_values", ("batch", config.num_frames, config.num_channels, size, size), normal)
""",
}
ENTRY_POINTS = """
[crossfuse.targets]
echo = echo_plugin.targets:ECHO

[crossfuse.input_rules]
vivit = echo_plugin.rules:vivit
"""


def install(folder: Path, package: str, entry_points: str, code: dict[str, str]) -> Path:
    """A package as an installer leaves it."""
    module = folder / package.replace("-", "_")
    module.mkdir(parents=True)
    for name, text in code.items():
        (module / f"{name}.py").write_text(text)
    metadata = folder / f"{module.name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    return folder


def python(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *sys.path])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def command(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "crossfuse", *arguments)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("site"), "echo-plugin", ENTRY_POINTS, CODE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A video transformer, whose signature doesn't tell that its pixels have five axes."""
    config = transformers.VivitConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=16, num_frames=4, tubelet_size=[2, 8, 8],
    )  # fmt: skip
    torch.manual_seed(0)
    vivit = perturbed(transformers.VivitModel(config))
    folder = tmp_path_factory.mktemp("checkpoint")
    vivit.save_pretrained(folder)
    return vivit, folder


EXPORTS = """
import sys
import crossfuse
from crossfuse import runtime
from crossfuse.cli import main

folder, *command = sys.argv[1:]
try:
    main(command)
except SystemExit as stop:
    assert stop.code == 0, stop
print("in Python:", flush=True)
bundle = crossfuse.export(
    "cross_modal_attention", folder, ["echo"], precision="fp16", size="tiny"
)
print(crossfuse.verify(bundle.path, "echo").executed_on)
with runtime.load(bundle.path) as session:
    print(session.target, session.provider)
"""


@pytest.fixture(scope="module")
def exports(
    site: Path, model: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """A bundle from the command line, what was printed, and what Python printed about another in
    half precision: one process, since each imports PyTorch."""
    out = tmp_path_factory.mktemp("bundles")
    command = ("export", f"hf:{model[1]}", "--target", "echo", "--target", "ort-cpu")
    done = python(site, "-c", EXPORTS, out / "half", *command, "-o", out / "vivit")
    assert done.returncode == 0, done.stderr
    printed, _, in_python = done.stdout.partition("in Python:\n")
    return out / "vivit", printed, in_python


@pytest.fixture(scope="module")
def bundle(exports: tuple[Path, str, str]) -> Path:
    path, printed, _ = exports
    assert "1 fused in echo" in printed
    return path


def test_both_are_in_the_bundle(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    entry = manifest.targets["echo"]
    assert (entry.package, entry.producers["echo-plugin"]) == ("echo-plugin", "1.2")
    assert entry.stages == {"model": "model.echo.onnx"}
    assert entry.parity is not None
    assert (entry.parity["passed"], entry.parity["executed_on"]) == (True, "Echo")
    assert [row.fused["echo"] for row in manifest.ledger] == ["echo.Attention"]
    assert manifest.targets["ort-cpu"].package == ""
    (pixels,) = manifest.inputs
    assert pixels.shape == ("batch", 4, 3, 16, 16)


def test_every_command_knows_the_target(
    site: Path, bundle: Path, model: tuple[Any, Path], tmp_path: Path
) -> None:
    pixels = torch.randn(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    np.savez(tmp_path / "in.npz", pixel_values=pixels.numpy())

    # Where no target is named, the rank decides: echo's is above ort-cpu's.
    done = command(
        site, "run", bundle, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("echo on Echo")
    with torch.no_grad():
        eager = model[0](pixels).last_hidden_state.numpy()
    with np.load(tmp_path / "out.npz") as outputs:
        np.testing.assert_allclose(outputs["last_hidden_state"], eager, atol=2e-5)

    done = command(site, "verify", bundle, "--target", "echo", "--json")
    report = json.loads(done.stdout)
    assert (report["passed"], report["target"], report["executed_on"]) == (True, "echo", "Echo")

    done = command(
        site, "profile", bundle, "--target", "echo", "--rounds", 3, "--seconds", 0.01,
        "--cold-starts", 1, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["target"], report["provider"]) == ("echo", "Echo")
    assert all(row["failure"] is None and row["rounds_ns"] for row in report["rows"])
    assert report["cold_start"] is not None

    repository = tmp_path / "models"
    options = ("--for", "triton", "--target", "echo", "--name", "vivit", "-o", repository)
    done = command(site, "package", bundle, *options)
    assert done.returncode == 0, done.stderr
    assert "echo" in (repository / "vivit" / "config.pbtxt").read_text()

    done = command(site, "inspect", bundle, "--json")
    assert set(json.loads(done.stdout)["targets"]) == {"echo", "ort-cpu"}

    done = command(site, "build", bundle, "--target", "echo", "--precision", "bf16")
    assert done.returncode == 2
    assert "target 'echo' can't be built in this precision: got 'bf16', expected fp32, fp16" in (
        " ".join(done.stderr.split())
    )


def test_python_knows_it_and_its_half_precision(exports: tuple[Path, str, str]) -> None:
    _, _, in_python = exports
    assert in_python.splitlines() == ["Echo", "echo Echo"]


def test_a_target_that_can_not_run_here_is_checked_by_its_cpu_equivalent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TARGETS, "_registered", {})
    place = "crossfuse.targets.onnxruntime:lower_ort_cpu"
    crossfuse.register_target(
        crossfuse.Target("remote", "", place, "nowhere:opener", requires=("no_such_module",))
    )
    bundle = crossfuse.export("cross_modal_attention", tmp_path / "b", ["remote"], size="tiny")
    stood_in = "CPUExecutionProvider, fp32 simulated"
    assert (bundle.target("remote").parity or {})["executed_on"] == stood_in
    report = crossfuse.verify(bundle.path, "remote", bisect=True)
    assert (report.passed, report.target, report.executed_on) == (True, "remote", stood_in)
    with pytest.raises(BundleError, match="'remote' needs no_such_module, which is not installed"):
        runtime.load(bundle.path, "remote")


def test_where_the_package_is_missing_the_bundle_says_so(bundle: Path) -> None:
    with runtime.load(bundle) as session:
        assert session.target == "ort-cpu"
    missing = r"no installed package provides this target.*'echo'.*package 'echo-plugin'"
    with pytest.raises(BundleError, match=missing):
        runtime.load(bundle, "echo")
    with pytest.raises(BundleError, match=missing):
        crossfuse.verify(bundle, "echo")
    with pytest.raises(InputError, match="unknown target: got 'echo'"):
        crossfuse.build(bundle, "echo")
    with pytest.raises(BundleError, match="echo, which no installed package provides"):
        runtime.best_target(["echo"])


def test_a_model_that_needs_a_rule_is_not_exported_without() -> None:
    """Its arguments are none that the planner knows."""
    config = transformers.TimesFmConfig(
        patch_length=8, context_length=16, horizon_length=8, num_hidden_layers=1, hidden_size=16,
        intermediate_size=16, head_dim=8, num_attention_heads=2,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"itself refuses.*'past_values_padding' and 'freq'"):
        crossfuse.huggingface_spec(transformers.TimesFmModel(config))


def test_a_broken_package_fails_those_who_ask_for_it(site: Path, tmp_path: Path) -> None:
    install(
        tmp_path,
        "broken-plugin",
        "[crossfuse.targets]\nbroken = broken_plugin:TARGET\n",
        {"__init__": "raise RuntimeError('no licence found')\n"},
    )
    install(
        tmp_path,
        "second-echo",
        "[crossfuse.targets]\necho = second_echo:ECHO\n",
        {"__init__": "from echo_plugin.targets import ECHO\n"},
    )
    script = """
from crossfuse.core.target import TARGETS, require_target
from crossfuse.errors import InputError

print(sorted(TARGETS))
print(require_target("ort-cpu").name)
for name in ("broken", "echo"):
    try:
        require_target(name)
    except InputError as error:
        print(error)
"""
    done = python(tmp_path, "-c", f"import sys; sys.path.append({str(site)!r})\n{script}")
    names, one, broken, twice = done.stdout.splitlines()
    assert "'broken', 'echo', 'onnx', 'openvino', 'ort-cpu'" in names, done.stderr
    assert one == "ort-cpu"
    assert "the target 'broken' of package broken-plugin can't be loaded" in broken
    assert "RuntimeError: no licence found" in broken
    assert "echo-plugin" in twice
    assert "second-echo" in twice
