"""The process that builds engines: what it is asked comes back answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crossfuse.targets.tensorrt import worker

BUILDER = "crossfuse.targets.tensorrt.builder"


def test_every_engine_of_a_request_is_built_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = ModuleType(BUILDER)
    asked: list[tuple[Any, Any]] = []

    def build(job: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        asked.append((job, options))
        return {"layers": [job["name"]]}

    vars(builder).update(build=build, library_version=lambda: "9.9")
    monkeypatch.setitem(sys.modules, BUILDER, builder)
    request, result = tmp_path / "request.json", tmp_path / "result.json"
    jobs = [{"name": "context"}, {"name": "query"}]
    request.write_text(json.dumps({"engines": jobs, "options": {"lean": True}}))
    worker.main(str(request), str(result))
    assert asked == [(job, {"lean": True}) for job in jobs]
    assert json.loads(result.read_text()) == {
        "version": "9.9",
        "engines": [{"layers": ["context"]}, {"layers": ["query"]}],
    }


def test_the_worker_imports_nothing_until_it_builds() -> None:
    """Its parent chooses the library by the environment, and neither needs PyTorch."""
    code = (
        "import sys, crossfuse.targets.tensorrt.worker\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'polygraphy', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
