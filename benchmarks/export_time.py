"""How long an export takes, by phase.

    python benchmarks/export_time.py [NAME]… [--quick] [--json FILE]

The tiny zoo, a matcher of the kind of LightGlue (9 layers, 36 attentions), a policy that denoises
in 10 steps (61 attentions), and Whisper at the size of base with random weights. Each in a process
of its own; seconds of the CPU, since a shared machine's clock tells of its other work too, and of
the clock. `importing PyTorch` is compared with: an export's ratio to it hardly depends on the
machine. `load` holds the import of PyTorch's compiler.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ZOO = ("cross_modal_attention", "clip", "vilt", "qformer", "dalle")
OTHERS = ("matcher", "policy", "whisper_base")
PHASES = {
    "loading": "load",
    "running the model twice": "repeatable",
    "counting": "census",
    "tracing": "trace",
    "translating": "translate",
    "fusing": "fuse",
    "writing": "split and write",
    "eager reference": "reference",
    "eager in": "half precisions",
}
"""The beginning of what an export tells → its phase; what follows is of targets."""


def phase_of(text: str) -> str:
    """The phase that a step belongs to."""
    known = (name for start, name in PHASES.items() if text.startswith(start))
    return next(known, "targets")


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Seconds of an export in this process: of the CPU by phase, and of the clock."""
    start, begun = time.process_time(), time.perf_counter()
    import torch

    imported = time.process_time() - start
    import crossfuse

    steps: list[tuple[str, float]] = []
    source = name if name in ZOO else f"{HERE}/export_models.py:{name}"
    size = "tiny" if name in ZOO else "published"
    with tempfile.TemporaryDirectory() as folder:
        bundle = crossfuse.export(
            source,
            Path(folder) / "b",
            size=size,
            quick=quick,
            step=lambda text: steps.append((phase_of(text), time.process_time())),
        )
        count = len(bundle.ledger)
    end = time.process_time()
    phases: dict[str, float] = defaultdict(float)
    for (phase, at), after in zip(steps, [*(at for _, at in steps[1:]), end], strict=True):
        phases[phase] += after - at
    return {
        "attentions": count,
        "importing PyTorch": round(imported, 2),
        "phases": {phase: round(seconds, 2) for phase, seconds in phases.items()},
        "cpu": round(end - start, 2),
        "clock": round(time.perf_counter() - begun, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure each export in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*ZOO, *OTHERS])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help="in this process, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.names[0], given.quick)))
        return
    found = {}
    for name in given.names:
        options = ["--quick"] if given.quick else []
        command = [sys.executable, __file__, name, "--one", *options]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(run.stdout.splitlines()[-1])
        phases = ", ".join(f"{p} {s:.1f}" for p, s in found[name]["phases"].items())
        print(
            f"{name}: {found[name]['cpu']:.1f} s of CPU, {found[name]['clock']:.1f} s "
            f"({found[name]['attentions']} attentions; importing PyTorch "
            f"{found[name]['importing PyTorch']:.1f}, {phases})",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
