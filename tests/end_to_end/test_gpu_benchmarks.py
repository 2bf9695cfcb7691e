"""The parts of `benchmarks/gpu` go through all their steps on the CPU, and one of them on stand-ins
for CUDA's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_rehearsal.driver import build_driver, environment_on, missing_for_driver

ROOT = Path(__file__).parents[2]
slow = pytest.mark.slow


def results_of(
    part: str, out: Path, *options: str, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu" / "run.py"),
        part,
        "--out",
        str(out),
        *options,
    ]
    own = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        command, env=environment or own, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / f"{part}.json").read_text())
    return found


@pytest.mark.parametrize(
    "part",
    [
        "forms",
        *(
            pytest.param(p, marks=slow)
            for p in ("parity", "races", "capture", "decoding", "latency")
        ),
    ],
)
def test_parts_run_dry(part: str, tmp_path: Path) -> None:
    found = results_of(part, tmp_path, "--dry-run", "--models", "cross_modal_attention")
    assert found["dry_run"]
    assert found["gpu"] is None
    assert {"python", "numpy"} <= set(found["environment"])
    assert found["results"]
    for result in found["results"]:
        assert not {"failed", "refused", "skipped"} & set(result), result
        assert result.get("passed", True)
        assert not result.get("wrong")


@slow
def test_forms_tell_their_kernels_on_stand_ins(tmp_path: Path) -> None:
    standins = pytest.importorskip(
        "gpu_rehearsal.build_standins", reason="the provider's stand-ins are not here"
    )
    reason = missing_for_driver() or standins.missing_for_provider()
    if reason is not None:
        pytest.skip(reason)
    folders = [tmp_path / "driver", tmp_path / "provider"]
    for folder, build in zip(
        folders, (build_driver, standins.build_provider_standins), strict=True
    ):
        folder.mkdir()
        build(folder)
    found = results_of("forms", tmp_path, "--minutes", "0.1", environment=environment_on(*folders))
    assert found["gpu"]["name"] == "Rehearsal GPU 0"
    first = found["results"][0]["forms"]
    assert all(form["kernels"] for form in first.values())
    assert found["results"][-1]["skipped"] == "no time left"
