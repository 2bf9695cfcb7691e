"""Denoising over a fixed context: the split bundle against the unsplit one, 4 steps, in one run.

    python benchmarks/denoising.py [--json FILE] [--repeats N]

The action head of `examples/denoising.py` at its published sizes, random weights. Both run in ONNX Runtime, interleaved; the
split one's time includes encoding the context.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

import crossfuse
from crossfuse import runtime

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from denoising import Config, denoise, spec


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    config = Config()
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((1, config.action_tokens, config.action_size), "f4")
    context = generator.standard_normal((1, config.context_tokens, config.context_width), "f4")
    with tempfile.TemporaryDirectory() as name:
        head = spec(config)
        crossfuse.export(head, Path(name) / "split")
        crossfuse.export(head, Path(name) / "whole", whole=True)
        split, whole = (runtime.load(Path(name) / kind) for kind in ("split", "whole"))

        def with_split() -> np.ndarray:
            encoded = split.encode(context=context)
            return denoise(lambda a, t: split.query(encoded, actions=a, time=t)["output"], noise)

        def without() -> np.ndarray:
            return denoise(lambda a, t: whole.run(actions=a, time=t, context=context)["output"], noise)

        samples: dict[str, list[float]] = {"split": [], "unsplit": []}
        error = float(np.abs(with_split() - without()).max())
        for _ in range(options.repeats):
            for kind, call in (("split", with_split), ("unsplit", without)):
                begin = time.perf_counter()
                call()
                samples[kind].append(1e3 * (time.perf_counter() - begin))
    medians = {kind: round(float(np.median(times)), 1) for kind, times in samples.items()}
    result = {
        "median_ms": medians,
        "ratio": round(medians["unsplit"] / medians["split"], 2),
        "largest difference": error,
        "environment": {"onnxruntime": ort.__version__, "machine": platform.machine(), "cpus": 2},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
