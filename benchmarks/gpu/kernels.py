"""Which attention kernels ONNX Runtime's CUDA provider runs.

It prints them, so this is a program of its own.

    python benchmarks/gpu/kernels.py JOBS.json RESULTS.json

A job is ``{"graph": FILE, "inputs": FILE.npz}``, or ``{"bundle": FOLDER, "target": NAME}`` for a
bundle's reference inputs. Its result counts the kernels by name, or tells the error.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"] = "1"

import numpy as np

from crossfuse.parity.reference import REFERENCE_FILE, load_reference
from crossfuse.runtime import SessionOptions, load
from crossfuse.runtime.onnxruntime_stage import OrtStage


def run(job: dict[str, str], options: SessionOptions) -> None:
    """Execute a job once."""
    if "graph" in job:
        engine = OrtStage(Path(job["graph"]), job["provider"], options)
        engine.run_mixed(dict(np.load(job["inputs"], allow_pickle=False)))
        return
    with load(job["bundle"], job["target"], options) as session:
        for point in load_reference(Path(job["bundle"]) / REFERENCE_FILE).points:
            session.run(**point.inputs)


def main() -> None:
    """Run the jobs; what C code prints goes to a file that is read after each."""
    jobs, results = map(Path, sys.argv[1:])
    told = json.loads(jobs.read_text())
    found: list[dict[str, object]] = []
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        for job in told["jobs"]:
            at = printed.seek(0, os.SEEK_END)
            error = None
            try:
                run(job, SessionOptions(device_id=told["device"]))
            except Exception as raised:  # noqa: BLE001 -- told in the result
                error = " ".join(str(raised).split())[:300]
            ctypes.CDLL(None).fflush(None)
            printed.seek(at)
            kernels = Counter(
                re.findall(r"SdpaKernel=(\w+)", printed.read().decode(errors="replace"))
            )
            found.append({"kernels": dict(kernels), "error": error})
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
