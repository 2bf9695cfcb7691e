"""What the documentation shows is run: the Python example, the commands, and the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossfuse.models.registry import zoo_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, text: str = README) -> str:
    match = re.search(rf"<!-- tested -->\n```{language}\n(.*?)```", text, re.DOTALL)
    assert match
    return match.group(1)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_python_example(tmp_path: Path) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    printed = run([sys.executable, "-c", code], tmp_path).stdout.strip()
    promised = re.search(r"It prints `(.*?)`", README)
    assert promised
    assert printed == promised.group(1)


def test_commands(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "inputs.npz",
        **{k: v.numpy() for k, v in zoo_spec("qformer", "tiny").inputs.items()},
    )
    for line in block("sh").splitlines():
        run(line.split(), tmp_path)
    assert (tmp_path / "outputs.npz").exists()


@pytest.mark.slow
def test_tensorrt_commands(tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'crossfuse[rtx]')"
    )
    printed = [
        run(line.split(), tmp_path)
        for line in block("sh", (ROOT / "docs" / "tensorrt.md").read_text()).splitlines()
    ]
    assert "cached" in printed[2].stderr
    assert "6 fused in tensorrt-rtx" in printed[1].stdout
    assert "6 fused in tensorrt-rtx, 6 fused in ort-cpu" in printed[-1].stdout
    assert "profile batch=1:4:16, image_tokens" in printed[3].stdout


@pytest.mark.slow
def test_performance_commands(tmp_path: Path) -> None:
    printed = [
        run(line.split(), tmp_path)
        for line in block("sh", (ROOT / "docs" / "performance.md").read_text()).splitlines()
    ]
    assert "of the roofline" in printed[1].stdout
    assert "4 callers" in printed[2].stdout
    assert "95% interval" in printed[3].stdout
    assert not re.search(r"│ slower +│", printed[3].stdout)
    assert (tmp_path / "report.html").exists()


def test_verify_commands(tmp_path: Path) -> None:
    spec = zoo_spec("qformer", "tiny")
    for name, sizes in (("real", {"text": 3}), ("more", {"batch": 1, "image_tokens": 20})):
        made = spec.sample(spec.example_sizes | sizes, seed=len(name))
        np.savez(tmp_path / f"{name}.npz", **{k: v.numpy() for k, v in made.items()})
    text = (ROOT / "docs" / "verify.md").read_text()
    printed = [
        " ".join(run(line.split(), tmp_path).stdout.split())
        for line in block("sh", text).splitlines()
    ]
    assert "10 points, 2 of them given, against the eager model in float64" in printed[1]
    assert "2 points, 2 of them given, against the bundle's fused graph" in printed[2]
    assert "1 point, 1 of them given, against the eager model in float64" in printed[3]
    assert all("passed" in line for line in printed)


@pytest.mark.parametrize("size", ["tiny", pytest.param("published", marks=pytest.mark.slow)])
def test_demo(tmp_path: Path, size: str) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples" / "demo.py"),
        "--size",
        size,
        "--bundle",
        str(tmp_path / "b"),
    ]
    printed = run([*command, "--repeats", "2"], tmp_path).stdout
    assert "of eager's time" in printed
    if size == "published":
        assert "18 attentions (12 self, 6 cross); 18 fused in ort-cpu" in printed
        assert "without PyTorch; input: chelsea.jpg" in printed


@pytest.mark.slow
def test_serving_commands_and_client(tmp_path: Path) -> None:
    """The commands as documented; the client against the server that the next paragraphs start."""
    pytest.importorskip("ray", reason="ray is not installed")
    serving = pytest.importorskip("serving", reason="tritonclient is not installed")
    text = (ROOT / "docs" / "serving.md").read_text()
    (tmp_path / "rows").mkdir()
    one = {k: v.numpy()[:1] for k, v in zoo_spec("qformer", "tiny").inputs.items()}
    np.savez(tmp_path / "rows" / "first.npz", **one)
    printed = [run(line.split(), tmp_path) for line in block("sh", text).splitlines()]
    assert "qformer written to models" in printed[1].stdout
    assert "1 rows (0 done before), 0 failed" in printed[3].stdout
    assert (tmp_path / "answers" / "first.npz").exists()
    port, metrics = serving.free_port(), serving.free_port()
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "serve",
        "bundle",
        "--port",
        str(port),
        "--metrics-port",
        str(metrics),
    ]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        serving.wait_until_ready(port, "qformer")
        code = block("python", text).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        assert run([sys.executable, "-c", code], tmp_path).stdout == "(2, 5, 32)\n"
    finally:
        server.terminate()
        assert server.wait(120) == 0


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
            assert link.startswith("http") or (ROOT / link).exists(), f"{name}: {link}"


def test_architecture_names_files_that_exist() -> None:
    source = ROOT / "src" / "crossfuse"
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"\b[a-z_]+/[a-z_/]+\.py\b", text):
        home = ROOT if name.startswith(("tests/", "benchmarks/")) else source
        assert (home / name).is_file(), name
    packages = {p.name for p in source.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert all(f"`{p}/`" in text for p in packages)
