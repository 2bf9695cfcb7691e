"""The whole way on the CPU: export the Q-Former, prove it, run it without PyTorch, and time it.

python examples/demo.py [--bundle FOLDER] [--size tiny] [--repeats N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from photo import inputs

import crossfuse
from crossfuse import runtime
from crossfuse.commands.output import Output
from crossfuse.commands.tables import show_ledger, show_parity
from crossfuse.models.registry import zoo_spec

HERE = Path(__file__).parent


def latency(bundle: Path, size: str, repeats: int) -> None:
    """Interleaved, so that a noisy machine disturbs both alike; medians and their ratio."""
    if size == "published":
        feeds = inputs()
    else:
        feeds = {name: tensor.numpy() for name, tensor in zoo_spec("qformer", size).inputs.items()}
    module = zoo_spec("qformer", size).module
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    samples: dict[str, list[float]] = {"eager PyTorch": [], "crossfuse": []}
    with runtime.load(bundle) as session, torch.inference_mode():
        runs = {
            "eager PyTorch": lambda: module(**tensors),
            "crossfuse": lambda: session.run(**feeds),
        }
        for repeat in range(repeats + 3):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat >= 3:
                    samples[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(times)) * 1e3 for name, times in samples.items()}
    for name, median in medians.items():
        print(f"  {name:14} {median:8.2f} ms (median of {repeats}, batch 1)")
    print(
        f"  crossfuse takes {medians['crossfuse'] / medians['eager PyTorch']:.2f} of eager's time"
    )


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("demo-bundle"))
    parser.add_argument("--size", default="published", choices=["tiny", "published"])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    begin = time.monotonic()
    output = Output(as_json=False)

    print(f"1. Export the Q-Former ({arguments.size} size, random weights of seed 0)", flush=True)
    with output.progress() as progress:
        bundle = crossfuse.export(
            "qformer", arguments.bundle, size=arguments.size, seed=0, step=progress
        )
    print("\n2. The proof: every attention fused, and the numbers of eager PyTorch", flush=True)
    show_ledger(output, bundle.ledger, bundle.targets)
    show_parity(output, crossfuse.verify(bundle))
    if arguments.size == "published":
        print("\n3. A photograph, in a process where PyTorch can't be imported", flush=True)
        subprocess.run(
            [sys.executable, str(HERE / "without_torch.py"), str(bundle.path)], check=True
        )
    print("\n4. Latency on this machine, side by side", flush=True)
    latency(bundle.path, arguments.size, arguments.repeats)
    print(f"\nDone in {time.monotonic() - begin:.0f} s; the bundle is in {bundle.path}")


if __name__ == "__main__":
    main()
