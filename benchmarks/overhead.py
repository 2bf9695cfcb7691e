"""What the runtime itself costs: its import, loading, and each call over the engine's own.

    python benchmarks/overhead.py [--json FILE]

Import: fresh processes that import `crossfuse.runtime` (no engine is imported), against processes
that import NumPy alone.
The rest: the tiny cross-modal attention, batch 1, in one thread; `Session.run`, `Session.encode`
and `Session.query` in turns with `onnxruntime.InferenceSession.run` on the same graph and inputs,
and `runtime.load` with opening the graph alone.
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
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

import crossfuse
from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.models.registry import zoo_spec

IMPORT = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"


def import_ms(modules: str, repeats: int = 15) -> float:
    """Median milliseconds of importing, in fresh processes."""
    times = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT.format(modules)],
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(float(done.stdout))
    return float(np.median(times)) * 1e3


def raw_session(graph: Path) -> ort.InferenceSession:
    """The engine alone, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def interleaved_us(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median microseconds per call, one call of each in turn."""
    samples: dict[str, list[int]] = {name: [] for name in calls}
    for repeat in range(repeats + repeats // 20):
        for name, call in calls.items():
            start = time.perf_counter_ns()
            call()
            if repeat >= repeats // 20:
                samples[name].append(time.perf_counter_ns() - start)
    return {name: float(np.median(times)) / 1e3 for name, times in samples.items()}


def run_us(folder: Path, repeats: int = 5000) -> dict[str, float]:
    """`Session.run` and a binding, on a bundle in one piece."""
    bundle = crossfuse.export("cross_modal_attention", folder / "whole", size="tiny", whole=True)
    feeds = example()
    session = runtime.load(bundle.path, "ort-cpu", runtime.SessionOptions(threads=1))
    raw = raw_session(bundle.path / bundle.target("ort-cpu").stages["model"])
    binding = session.bind(**feeds)
    return interleaved_us(
        {
            "raw": lambda: raw.run(None, feeds),
            "session": lambda: session.run(**feeds),
            "binding": binding.run,
        },
        repeats,
    )


def stages_us(folder: Path, repeats: int = 5000) -> dict[str, float]:
    """`Session.encode` and `Session.query`, on a split bundle."""
    bundle = crossfuse.export("cross_modal_attention", folder / "split", size="tiny")
    feeds = example()
    session = runtime.load(bundle.path, "ort-cpu", runtime.SessionOptions(threads=1))
    graphs = bundle.target("ort-cpu").stages
    first = {spec.name: feeds.pop(spec.name) for spec in session.stages["context"].inputs}
    context = session.encode(**first)
    encoder, asker = (raw_session(bundle.path / graphs[stage]) for stage in ("context", "query"))
    given = {**feeds, **context.tensors}
    return interleaved_us(
        {
            "raw context": lambda: encoder.run(None, first),
            "encode": lambda: session.encode(**first),
            "raw query": lambda: asker.run(None, given),
            "query": lambda: session.query(context, **feeds),
        },
        repeats,
    )


def load_us(folder: Path, repeats: int = 60) -> dict[str, float]:
    """`runtime.load`, which checks every file's hash, over opening the graph alone."""
    bundle = folder / "whole"
    graph = bundle / open_bundle(bundle).target("ort-cpu").stages["model"]
    return interleaved_us(
        {"raw load": lambda: raw_session(graph), "load": lambda: runtime.load(bundle, "ort-cpu")},
        repeats,
    )


def example() -> dict[str, np.ndarray]:
    """One sample of four tokens over eight."""
    sizes = {"batch": 1, "length": 4, "context_length": 8}
    return {
        name: t.numpy()
        for name, t in zoo_spec("cross_modal_attention", "tiny").sample(sizes, 0).items()
    }


def measure() -> dict[str, object]:
    """Everything."""
    numpy_ms, runtime_ms = import_ms("numpy"), import_ms("crossfuse.runtime")
    with tempfile.TemporaryDirectory() as name:
        run, stages, load = run_us(Path(name)), stages_us(Path(name)), load_us(Path(name))
    return {
        "import_numpy_ms": numpy_ms,
        "import_runtime_ms": runtime_ms,
        "raw_run_us": run["raw"],
        "session_run_us": run["session"],
        "binding_run_us": run["binding"],
        "session_overhead_us": run["session"] - run["raw"],
        "session_ratio": run["session"] / run["raw"],
        "binding_ratio": run["binding"] / run["raw"],
        "raw_context_us": stages["raw context"],
        "encode_us": stages["encode"],
        "raw_query_us": stages["raw query"],
        "query_us": stages["query"],
        "raw_load_ms": load["raw load"] / 1e3,
        "load_ms": load["load"] / 1e3,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "onnxruntime": ort.__version__,
        },
    }


def lines(result: Mapping[str, object]) -> list[str]:
    """Rows of a table: what, ours, the engine's own."""

    def us(name: str) -> str:
        return f"{result[name]:.1f} µs"

    imports = (
        f"{result['import_runtime_ms']:.0f} ms | NumPy alone {result['import_numpy_ms']:.0f} ms"
    )
    return [
        f"| import `crossfuse.runtime` | {imports} |",
        f"| load | {result['load_ms']:.1f} ms | {result['raw_load_ms']:.1f} ms |",
        f"| `Session.run` | {us('session_run_us')} | {us('raw_run_us')} |",
        f"| `Binding.run` | {us('binding_run_us')} | {us('raw_run_us')} |",
        f"| `Session.encode` | {us('encode_us')} | {us('raw_context_us')} |",
        f"| `Session.query` | {us('query_us')} | {us('raw_query_us')} |",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure()
    print("\n".join(["| | crossfuse | ONNX Runtime alone |", "|---|---|---|", *lines(result)]))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
