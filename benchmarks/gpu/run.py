"""What only a GPU can settle, in parts that each take ten minutes at most and are useful alone.

    python benchmarks/gpu/run.py PART --out FOLDER [--device 0] [--models clip,vilt]
                                 [--size published] [--minutes 9] [--against eager,onnx]
    python benchmarks/gpu/run.py PART --out FOLDER --dry-run

==============  ===================================================================================
``parity``      the zoo in three precisions, on ONNX Runtime's CUDA provider and, where it has
                engines for the GPU, TensorRT-RTX: numbers, and the attention kernels that ran
``forms``       each form of an attention at L = 1, 12, 32, 512 and S = 257, 577, 1500: kernel,
                latency, error
``races``       inputs that are still computed, and outputs that are dropped while they are read:
                wrong answers with and without the orders that the runtime keeps
``capture``     CUDA graphs whose capture is interrupted by exceptions, and what the stream does
                after that
``decoding``    steps with the state on the GPU, against eager PyTorch; a server over encoded
                contexts
``latency``     the zoo against eager, torch.compile (default, and max-autotune with CUDA graphs)
                and plain ONNX Runtime
==============  ===================================================================================

Writes FOLDER/PART.json after every case, so that a part that is cut off has told what it found:
results, GPU, driver, versions. ``--dry-run`` goes through the same steps on the CPU at tiny sizes;
its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from case import Run
from forms import forms
from models import decoding, latency, parity
from races import capture, races

ZOO = ("cross_modal_attention", "clip", "vilt", "qformer", "dalle")
PARTS: dict[str, Callable[[Run], None]] = {
    "parity": parity,
    "forms": forms,
    "races": races,
    "capture": capture,
    "decoding": decoding,
    "latency": latency,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for bundles, kept from run to run")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--models", default=",".join(ZOO), help="of the zoo")
    parser.add_argument(
        "--size", choices=("tiny", "published"), help="of the models; tiny for parity and capture"
    )
    parser.add_argument("--against", help="rivals of the latency part; all unless given")
    parser.add_argument("--minutes", type=float, default=9.0, help="after these no case is begun")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    given = parser.parse_args(arguments)
    size = "tiny" if given.dry_run or given.part in ("parity", "capture", "races") else "published"
    with tempfile.TemporaryDirectory() as name:
        run = Run(
            given.part,
            given.out,
            given.device,
            given.dry_run,
            tuple(given.models.split(",")),
            given.size or size,
            time.monotonic() + 60 * given.minutes,
            given.work or Path(name),
            tuple(given.against.split(",")) if given.against else None,
        )
        run.work.mkdir(parents=True, exist_ok=True)
        PARTS[given.part](run)
    print(f"{len(run.results)} cases in {given.out / given.part}.json")


if __name__ == "__main__":
    main()
