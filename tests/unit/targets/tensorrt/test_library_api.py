"""The TensorRT API that is used exists in TensorRT-RTX (as installed) and in TensorRT (by its type
stubs)."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import crossfuse

ROOT = Path(crossfuse.__file__).parent
CHECKED = [
    ROOT / "targets" / "tensorrt" / "builder.py",
    ROOT / "runtime" / "tensorrt_stage.py",
    ROOT / "runtime" / "execution_slot.py",
]


def used_names() -> set[str]:
    """``trt.X.Y`` chains in the builder."""
    found = set()
    for node in ast.walk(ast.parse(CHECKED[0].read_text())):
        parts = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id == "trt" and parts:
            found.add(".".join(reversed(parts)))
    return found


def test_names_exist_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    names = used_names()
    assert {"Builder", "OnnxParser", "ILogger.Severity.ERROR", "IProgressMonitor"} <= names
    runtime = [
        "Runtime",
        "Logger",
        "TensorIOMode.INPUT",
        "DataType.BF16",
        "nptype",
        "IRuntimeCache",
    ]
    runtime += [f"Runtime.{n}" for n in ("deserialize_cuda_engine", "engine_host_code_allowed")]
    runtime += [
        f"ICudaEngine.{n}"
        for n in (
            "get_tensor_name", "get_tensor_mode", "get_tensor_dtype",
            "get_tensor_profile_shape", "num_io_tensors", "num_optimization_profiles",
            "create_execution_context", "create_runtime_config",
        )
    ]  # fmt: skip
    runtime += [
        f"IExecutionContext.{n}"
        for n in (
            "set_input_shape", "set_tensor_address", "execute_async_v3", "infer_shapes",
            "get_tensor_shape", "set_optimization_profile_async",
        )
    ]  # fmt: skip
    runtime += [
        f"IRuntimeConfig.{n}"
        for n in (
            "create_runtime_cache", "set_runtime_cache",
            "set_execution_context_allocation_strategy", "cuda_graph_strategy",
        )
    ]  # fmt: skip
    runtime += ["CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "CudaGraphStrategy.DISABLED"]
    runtime += [
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "ICudaEngine.device_memory_size_v2",
    ]
    runtime += ["IExecutionContext.set_device_memory", "IExecutionContext.is_stream_capturable"]
    runtime += [
        "BuilderFlag.REQUIRE_USER_ALLOCATION",
        "IRuntimeCache.serialize",
        "IRuntimeCache.deserialize",
    ]
    for name in (*names, *runtime):
        value = trt
        for part in name.split("."):
            assert hasattr(value, part), f"tensorrt_rtx has no {name}"
            value = getattr(value, part)


def repaired(line: str) -> str:
    """The stubs name a parameter ``in``, and put parameters without a default behind ones with."""
    line = re.sub(r"([(,] ?)in:", r"\1in_:", line)
    match = re.match(r"(\s*def \w+\()(.*)(\) ->.*)", line)
    if match is None:
        return line
    parts, depth, part = [], 0, ""
    for character in match[2]:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    parts.append(part)
    optional, made = False, []
    for text in parts:
        optional = optional or "=" in text
        made.append(f"{text} = ..." if optional and ":" in text and "=" not in text else text)
    return f"{match[1]}{','.join(made)}{match[3]}"


@pytest.mark.slow
def test_type_checks_against_the_stubs(tmp_path: Path) -> None:
    try:
        stubs = Path(str(distribution("tensorrt-stubs").locate_file("")))
    except PackageNotFoundError:
        pytest.skip("tensorrt-stubs are not installed (pip install --no-deps tensorrt-stubs)")
    for package in ("tensorrt", "tensorrt_bindings"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "py.typed").touch()
        for file in (stubs / package).glob("*.pyi"):
            text = "\n".join(repaired(line) for line in file.read_text().splitlines())
            ast.parse(text)
            (tmp_path / package / file.name).write_text(text)
    settings = f"""[mypy]
strict = true
python_version = 3.11
mypy_path = {tmp_path}:{ROOT.parent}
[mypy-polygraphy.*,filelock.*,onnxruntime.*,cuda.*]
ignore_missing_imports = true
follow_imports = skip
"""
    (tmp_path / "mypy.ini").write_text(settings)

    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\n\n\ndef f(c: trt.IExecutionContext) -> bool:\n    return "
        "c.execute_async_v4(0)\n"
    )
    files = [*CHECKED, wrong]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(tmp_path / "mypy.ini"),
        "--no-incremental",
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    errors = [
        line
        for line in done.stdout.splitlines()
        if "error:" in line and any(file.name in line for file in files)
    ]
    # Our files are clean; the one with a wrong name shows that the stubs were read.
    assert errors, done.stdout[-2000:] + done.stderr
    assert all("wrong.py" in line for line in errors), errors
    assert any("execute_async_v4" in line for line in errors)


def test_stubs_alone_are_not_the_library() -> None:
    from crossfuse.core.plugins import is_installed

    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("no folder of that name")
    assert is_installed("tensorrt") == hasattr(importlib.import_module("tensorrt"), "__version__")
