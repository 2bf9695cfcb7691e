"""One part's run: its cases, each of which may fail, and the file that tells what came of them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import crossfuse
from crossfuse.errors import CrossfuseError
from crossfuse.profiling.environment import command_line, environment
from crossfuse.profiling.measure.device_inputs import on_gpu
from crossfuse.profiling.measure.sampling import Plan
from crossfuse.runtime import SessionOptions
from crossfuse.runtime.driver import driver_version, gpu_uuid
from crossfuse.runtime.gpu import Gpu

__all__ = ["Run", "kernels"]

_HERE = Path(__file__).parent


@dataclass
class Run:
    """One part's run: where it computes, how long it may take, and what it found so far."""

    part: str
    out: Path
    device: int
    dry: bool
    models: tuple[str, ...]
    size: str
    until: float
    work: Path
    rivals: tuple[str, ...] | None = None
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def options(self) -> SessionOptions:
        """Of sessions."""
        return SessionOptions(device_id=self.device)

    @property
    def target(self) -> str:
        """Of ONNX Runtime."""
        return "ort-cpu" if self.dry else "ort-cuda"

    @property
    def plan(self) -> Plan:
        """How much is sampled."""
        return (
            Plan(rounds=3, seconds=0.001, calls=1, warm_up_seconds=0.01)
            if self.dry
            else Plan(rounds=8, seconds=0.1)
        )

    def case(self, work: Callable[[], dict[str, Any]], **about: Any) -> None:
        """Do one case, unless the time is over; keep what came of it, or the error."""
        if time.monotonic() > self.until:
            self.keep({**about, "skipped": "no time left"})
            return
        print(f"{self.part}: {about}", flush=True)
        try:
            found = work()
        except CrossfuseError as error:
            found = {"refused": str(error)}
        except Exception as error:  # noqa: BLE001 -- a case that fails is a result, and others go on
            found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        self.keep({**about, **found})

    def keep(self, result: dict[str, Any]) -> None:
        """Add a result, and write all of them."""
        self.results.append(result)
        found = {
            "part": self.part,
            "dry_run": self.dry,
            "command": command_line(),
            "gpu": self._gpu(),
            "environment": environment(),
            "results": self.results,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{self.part}.json").write_text(json.dumps(found, indent=1, default=str) + "\n")

    def _gpu(self) -> dict[str, Any] | None:
        if self.dry:
            return None
        gpu = Gpu(self.device)
        known = {
            "name": gpu.name,
            "capability": gpu.capability,
            "driver": driver_version(),
            "uuid": gpu_uuid(self.device),
        }
        return {**known, "torch_cuda": torch.version.cuda}

    def bundle(self, name: str, source: Any = None) -> Path:
        """A bundle of a model, exported once, with ONNX Runtime's target."""
        folder = self.work / name.replace(" ", "_")
        if not folder.exists():
            crossfuse.export(source or name, folder, [self.target], size=self.size)
        return folder

    def place(self, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """On the GPU, where there is one."""
        return dict(inputs) if self.dry else dict(on_gpu(inputs, Gpu(self.device)))

    def torch_device(self) -> torch.device:
        """Where PyTorch computes."""
        return torch.device("cpu") if self.dry else torch.device("cuda", self.device)


def kernels(run: Run, jobs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Attention kernels of each job, by a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        told, found = Path(name) / "jobs.json", Path(name) / "results.json"
        told.write_text(json.dumps({"jobs": jobs, "device": run.device}))
        subprocess.run(
            [sys.executable, str(_HERE / "kernels.py"), str(told), str(found)], check=True
        )
        results: list[dict[str, Any]] = json.loads(found.read_text())
    return results
