"""The CUDA provider on stand-ins, as tests use it: graphs in, kernels and errors out, by a process
of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from crossfuse.targets.graph_files import save_graph
from gpu_rehearsal.driver import environment_on

__all__ = ["CAPABILITIES", "GRID", "Job", "Provider", "kernels_promised"]

CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "12.0")
GRID = (1, 7, 8, 12, 16, 32, 257, 260, 300, 512, 577)

_PROGRAM = Path(__file__).parent / "provider_process.py"
_LIMIT_S = 300


@dataclass(frozen=True)
class Job:
    """A graph, or a file that holds one, and sizes of its dimensions to run it at."""

    graph: ir.Model | Path
    runs: Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class Provider:
    """``libraries`` is the folder of the stand-ins."""

    libraries: Path

    def run(self, jobs: Sequence[Job], capability: str = "9.0") -> list[dict[str, Any]]:
        """Each job's result: ``failed``, or ``on_cpu``, ``on_cuda``, ``to_host`` and ``runs`` (see
        `provider_process`)."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            asked = []
            for i, job in enumerate(jobs):
                path = job.graph
                if isinstance(path, ir.Model):
                    path = folder / f"{i}.onnx"
                    save_graph(job.graph, path, path.with_suffix(".bin"))
                asked.append({"graph": str(path), "runs": list(job.runs)})
            (folder / "jobs.json").write_text(json.dumps(asked))
            self.python(
                _PROGRAM, folder / "jobs.json", folder / "results.json", capability=capability
            )
            results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
        return results

    def python(self, *arguments: str | Path, capability: str = "9.0", **variables: str) -> str:
        """Run Python with the stand-ins in place; what it printed, on both streams."""
        environment = environment_on(
            self.libraries, CUDA_STANDIN_CAPABILITY=capability, **variables
        )
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout + done.stderr


def kernels_promised(text: str, queries: int, keys: int) -> str:
    """The kernel that a row of the ledger promises at these lengths: ``Attention (flash; efficient
    where …)``."""
    usual, _, other = text.partition("(")[2].removesuffix(")").partition("; ")
    if not other:
        return usual
    kernel, _, when = other.partition(" where ")
    assert when == "queries and keys differ in number"
    return usual if queries == keys else kernel
