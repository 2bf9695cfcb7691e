"""Cold starts, in fresh processes: from the start of the process to the first result, and the
memory that took."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from crossfuse.core.json_codec import JsonData
from crossfuse.core.npz import save_arrays
from crossfuse.core.processes import for_child
from crossfuse.core.scratch import scratch_folder
from crossfuse.errors import InputError

__all__ = ["ColdStart", "cold_start"]

_CHILD = """
import json, sys, time
at = {"started": time.time_ns()}
from crossfuse import runtime
at["imported"] = time.time_ns()
from crossfuse.core.processes import end_with_parent
end_with_parent()
session = runtime.load(sys.argv[1], sys.argv[2], runtime.SessionOptions(device_id=int(sys.argv[4])))
at["loaded"] = time.time_ns()
import numpy
inputs = dict(numpy.load(sys.argv[3], allow_pickle=False))
before = time.time_ns()
session.run(inputs)
at["answered"] = time.time_ns() - before
try:
    # The largest memory of this program; getrusage's includes that of the process that started it.
    peak = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024
except (OSError, IndexError):
    try:
        import resource
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    except ImportError:  # Windows has no such module
        peak = 0
print(json.dumps(at | {"peak": peak}))
"""


@dataclass(frozen=True)
class ColdStart(JsonData):
    """Medians over fresh processes, in seconds and bytes.

    Attributes:
        process: from the start of the process to Python's first line.
        imports: of :mod:`crossfuse.runtime`.
        load: of the bundle, hashes checked.
        first_result: the first call.
        total: their sum.
        peak_bytes: the process's largest resident memory; 0 where the system doesn't tell.
        runs: how many processes.
    """

    process: float
    imports: float
    load: float
    first_result: float
    total: float
    peak_bytes: int
    runs: int


def cold_start(
    bundle: Path, target: str, inputs: Mapping[str, NDArray[Any]], runs: int = 5, *, device: int = 0
) -> ColdStart:
    """Start so many processes, one after the other; ``device`` is the number of the GPU.

    Raises:
        InputError: a process failed.
    """
    taken = []
    with scratch_folder() as folder:
        file = folder / "inputs.npz"
        save_arrays(file, inputs)
        for _ in range(runs):
            before = time.time_ns()
            # -P: the working folder may be a stranger's, and is no place to import from.
            command = [
                sys.executable,
                "-P",
                "-c",
                _CHILD,
                str(bundle),
                target,
                str(file),
                str(device),
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=for_child()
            )
            if done.returncode:
                raise InputError(
                    "a fresh process failed: "
                    f"{(done.stderr.strip().splitlines() or ['nothing said'])[-1]}"
                )
            taken.append(_phases(before, json.loads(done.stdout)))
    middle = _Phases(*(statistics.median(values) for values in zip(*taken, strict=True)))
    return ColdStart(
        middle.process,
        middle.imports,
        middle.load,
        middle.first_result,
        total=middle.process + middle.imports + middle.load + middle.first_result,
        peak_bytes=int(middle.peak_bytes),
        runs=runs,
    )


class _Phases(NamedTuple):
    """One start: seconds, and bytes."""

    process: float
    imports: float
    load: float
    first_result: float
    peak_bytes: float


def _phases(before: int, at: Mapping[str, int]) -> _Phases:
    """From the child's own times in nanoseconds, and when it was started."""
    return _Phases(
        process=(at["started"] - before) * 1e-9,
        imports=(at["imported"] - at["started"]) * 1e-9,
        load=(at["loaded"] - at["imported"]) * 1e-9,
        first_result=at["answered"] * 1e-9,
        peak_bytes=float(at["peak"]),
    )
