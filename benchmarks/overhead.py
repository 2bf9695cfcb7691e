"""What the runtime itself costs: its import, and `Session.run` over the engine's own call.

    python benchmarks/overhead.py [--json FILE]

Import: fresh processes that import `crossfuse.runtime` (no engine is imported), against processes that import NumPy alone.
Run: the tiny cross-modal attention, batch 1; `Session.run` interleaved with `onnxruntime.InferenceSession.run` on the same
graph, same options, same inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

import crossfuse
from crossfuse import runtime
from crossfuse.models.registry import zoo_spec

IMPORT = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"


def import_ms(modules: str, repeats: int = 15) -> float:
    """Median milliseconds of importing, in fresh processes."""
    times = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", IMPORT.format(modules)], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return float(np.median(times)) * 1e3


def run_us(repeats: int = 5000) -> dict[str, float]:
    """Median microseconds per call, interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = crossfuse.export("cross_modal_attention", Path(folder) / "bundle", size="tiny", whole=True)
        sizes = {"batch": 1, "length": 4, "context_length": 8}
        feeds = {name: t.numpy() for name, t in zoo_spec("cross_modal_attention", "tiny").sample(sizes, 0).items()}
        session = runtime.load(bundle.path, "ort-cpu", runtime.SessionOptions(threads=1))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        graph = bundle.path / bundle.target("ort-cpu").stages["model"]
        raw = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        binding = session.bind(**feeds)
        calls = {
            "raw": lambda: raw.run(None, feeds),
            "session": lambda: session.run(**feeds),
            "binding": binding.run,
        }
        samples: dict[str, list[int]] = {name: [] for name in calls}
        for repeat in range(repeats + 200):
            for name, call in calls.items():
                start = time.perf_counter_ns()
                call()
                if repeat >= 200:
                    samples[name].append(time.perf_counter_ns() - start)
    return {name: float(np.median(times)) / 1e3 for name, times in samples.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    numpy_ms, runtime_ms = import_ms("numpy"), import_ms("crossfuse.runtime")
    run = run_us()
    result = {
        "import_numpy_ms": numpy_ms,
        "import_runtime_ms": runtime_ms,
        "raw_run_us": run["raw"],
        "session_run_us": run["session"],
        "binding_run_us": run["binding"],
        "session_overhead_us": run["session"] - run["raw"],
        "session_ratio": run["session"] / run["raw"],
        "binding_ratio": run["binding"] / run["raw"],
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "onnxruntime": ort.__version__},
    }
    print(f"import crossfuse.runtime: {runtime_ms:.0f} ms, of which NumPy {numpy_ms:.0f} ms")
    print(f"Session.run: {run['session']:.1f} µs against {run['raw']:.1f} µs raw ({result['session_overhead_us']:+.1f} µs)")
    print(f"Binding.run: {run['binding']:.1f} µs")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
