"""The table of docs/reference/gpu-rehearsal.md: every model on the CUDA provider over stand-ins.

The models are the zoo's (tiny) and the coverage suite's.

PYTHONPATH=tests .venv/bin/python -m gpu_rehearsal.table             # exports all models: minutes
PYTHONPATH=tests .venv/bin/python -m gpu_rehearsal.table FOLDER      # bundles that are there
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import crossfuse
from coverage.cases import CASES
from crossfuse.bundle.store import open_bundle
from gpu_rehearsal.build_standins import build_provider_standins
from gpu_rehearsal.provider import Provider
from gpu_rehearsal.test_provider_models import PRECISIONS, ZOO, check, stages_of

COLUMNS = (
    "Model, Graphs, Attentions, Runs, Failed, Floats on the CPU, Copies to the host, "
    "Kernels in fp32, in fp16, in bf16"
)
HEAD = f"| {COLUMNS.replace(', ', ' | ')} |\n{'|---' * 10}|"


def bundles(folder: Path | None, made: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each bundle."""
    for name in (*(f"zoo: {name}" for name in ZOO), *CASES):
        path = (folder or made) / name.replace("zoo: ", "zoo_")
        if folder is None:
            source = name.removeprefix("zoo: ") if name.startswith("zoo: ") else CASES[name].make()
            size = "tiny" if isinstance(source, str) else None
            unfused = name in CASES and bool(CASES[name].unfused)
            try:
                crossfuse.export(
                    source, path, ["onnx"], size=size or "published", allow_unfused=unfused
                )
            except crossfuse.CrossfuseError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
        yield name, path


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    print(HEAD)
    with tempfile.TemporaryDirectory() as made:
        libraries = Path(made) / "standins"
        libraries.mkdir()
        build_provider_standins(libraries)
        for name, path in bundles(folder, Path(made)):
            bundle = open_bundle(path)
            stages = stages_of(bundle)
            found = [
                check(Provider(libraries), stages, precision, "9.0", pairs=name.startswith("zoo: "))
                for precision in PRECISIONS
            ]
            for error in {error for one in found for error in one.errors}:
                print(f"{name}: {error}", file=sys.stderr)
            numbers = [
                sum(one.graphs for one in found),
                len(bundle.ledger),
                sum(one.runs for one in found),
            ]
            numbers += [
                sum(len(one.errors) for one in found),
                sum(len(one.on_cpu) for one in found),
                sum(one.to_host for one in found),
            ]
            kernels = [", ".join(sorted(one.kernels)) or "none" for one in found]
            print(f"| {' | '.join([name, *map(str, numbers), *kernels])} |", flush=True)


if __name__ == "__main__":
    main()
