"""Fusions that ONNX Runtime makes on the CPU whose kernels are slower than what they replace.

    python benchmarks/cpu_fusions.py [--json FILE]

The published Q-Former and CLIP, batch 1 and 8, each stage with all of ONNX Runtime's fusions, and
without those into `SkipLayerNormalization` and `BiasGelu`; interleaved rounds, time relative to all
fusions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

import crossfuse
from crossfuse import runtime
from crossfuse.parity.reference import load_reference
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.inputs import inputs_at
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio

WITHOUT = {
    "all fusions": [],
    "without SkipLayerNorm": ["SkipLayerNormFusion"],
    "without BiasGelu": ["BiasGeluFusion"],
    "without both": ["SkipLayerNormFusion", "BiasGeluFusion"],
}
BATCH_OF = {"qformer": ("batch", "contexts"), "clip": ("texts", "images", "contexts")}


def calls(graph: Path, feeds: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """A session for each set of fusions."""
    made: dict[str, Callable[[], object]] = {}
    for name, disabled in WITHOUT.items():
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        made[name] = lambda session=session: session.run(None, feeds)
    return made


def measure(name: str, batch: int, bundle: crossfuse.Bundle) -> dict[str, Any]:
    """Ratios of each stage."""
    manifest = bundle.manifest
    assert manifest.reference is not None
    known = dict(load_reference(bundle.path / manifest.reference).points[0].inputs)
    found: dict[str, Any] = {}
    with runtime.load(bundle.path, "ort-cpu") as session:
        sizes = {
            **manifest.example,
            **{dim: batch for dim in BATCH_OF[name] if dim in manifest.example},
        }
        feeds = inputs_at(session.inputs, known, sizes)
        first = {spec.name: feeds[spec.name] for spec in session.stages["context"].inputs}
        everything = {**feeds, **session.encode(**first).tensors}
        for stage, spec in session.stages.items():
            graph = bundle.path / bundle.target("ort-cpu").stages[stage]
            taken = sample(
                calls(graph, {s.name: everything[s.name] for s in spec.inputs}),
                Plan(rounds=10, calls=2),
            )
            for what, samples in taken.items():
                ratio = paired_ratio(samples.rounds, taken["all fusions"].rounds)
                found.setdefault(stage, {})[what] = [round(v, 4) for v in ratio.to_json()]
                print(
                    f"{name}, batch {batch}, {stage}: {what} {ratio.value:.3f} ({ratio.low:.3f} to "
                    f"{ratio.high:.3f})"
                )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": environment()}
    with tempfile.TemporaryDirectory() as folder:
        for name in BATCH_OF:
            bundle = crossfuse.export(name, Path(folder) / name, ["ort-cpu"])
            for batch in (1, 8):
                result[f"{name}, batch {batch}"] = measure(name, batch, bundle)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
