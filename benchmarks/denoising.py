"""Denoising over a fixed context: the split bundle against the unsplit one, 4 steps, in one run.

    python benchmarks/denoising.py [--json FILE] [--rounds N]

The action head of `examples/denoising.py` at its published sizes, random weights. Both run in ONNX
Runtime, in the same rounds; the split one's time includes encoding the context.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import crossfuse
from crossfuse import runtime
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from denoising import Config, denoise, spec


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
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
            return denoise(
                lambda a, t: whole.run(actions=a, time=t, context=context)["output"], noise
            )

        error = float(np.abs(with_split() - without()).max())
        taken = sample({"split": with_split, "unsplit": without}, Plan(rounds=options.rounds))
    result = {
        "median_ms": {
            kind: round(summarize(samples.rounds).median.value * 1e3, 1)
            for kind, samples in taken.items()
        },
        "ratio": [
            round(end, 3)
            for end in paired_ratio(taken["unsplit"].rounds, taken["split"].rounds).to_json()
        ],
        "largest difference": error,
        "environment": environment(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
