"""Latency and error of ``ort-cpu`` in int8 against fp32, published Q-Former (random weights), batch
1 and 8.

    python benchmarks/low_precision.py [--model NAME] [--json FILE] [--rounds N] [--work FOLDER]

One export, built once in fp32 and once in int8; both sessions answer in the same rounds, with
random inputs of the example's sizes at each batch, which nothing was chosen on. Medians, the ratio
round by round with its 95% interval, and per output the measures of the policy for low precision,
against the fp32 session. ``--processor-time`` counts the time of one thread on the processor in
place of the clock: on a machine that does other things as well, that is what can be compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import crossfuse
from crossfuse import runtime
from crossfuse.core.linear_ledger import in_words
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.low_precision import measured
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize
from crossfuse.runtime.options import SessionOptions

BATCHES = (1, 8)
SEED = 7


def bundles(name: str, precision: str, folder: Path) -> tuple[Path, Path]:
    """The model's bundle in fp32, and one in the precision."""
    wide, low = folder / "fp32", folder / precision
    if not wide.exists():
        crossfuse.export(name, wide, whole=True, quick=True, step=print)
    if not low.exists():
        shutil.copytree(wide, low)
        crossfuse.build(low, "ort-cpu", precision=precision, step=print)
    return wide, low


def inputs_at(name: str, batch: int) -> dict[str, Any]:
    """Random inputs, every sample another one; masks as in the example."""
    rng = np.random.default_rng(SEED + batch)
    found = {}
    for key, tensor in zoo_spec(name).inputs.items():
        array = tensor.numpy()
        shape = (batch, *array.shape[1:])
        if array.dtype.kind == "f":
            found[key] = rng.standard_normal(shape).astype(array.dtype)
        elif "mask" in key or array.dtype.kind == "b":
            found[key] = np.resize(array, shape)
        else:
            found[key] = rng.integers(0, int(array.max()) + 1, shape).astype(array.dtype)
    return found


def compared(wide: Mapping[str, Any], low: Mapping[str, Any]) -> dict[str, Any]:
    """Per output, what integers did to it."""
    found = {}
    for name, truth in wide.items():
        one = measured([(low[name], truth)])
        found[name] = {
            "cosine": round(one.cosine, 6),
            "relative_rms": round(one.relative_rms, 5),
            "top1": round(one.top1, 5),
        }
    return found


def processor_times(
    ways: Mapping[str, Callable[[], Any]], count: int
) -> dict[str, list[list[float]]]:
    """Rounds of one run each, one way after the other."""
    found: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(count):
        for way, run in ways.items():
            start = time.process_time_ns()
            run()
            found[way].append([float(time.process_time_ns() - start)])
    return found


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qformer")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"model": options.model, "precision": options.precision}
    with tempfile.TemporaryDirectory() as name:
        wide, low = bundles(options.model, options.precision, options.work or Path(name))
        result["layers"] = in_words(crossfuse.open_bundle(low).target("ort-cpu").linears)
        chosen = SessionOptions(threads=1 if options.processor_time else None)
        sessions = {
            "fp32": runtime.load(wide, options=chosen),
            options.precision: runtime.load(low, options=chosen),
        }
        result["measured"] = (
            "processor time of one thread" if options.processor_time else "time, all threads"
        )
        for batch in BATCHES:
            inputs = inputs_at(options.model, batch)
            outputs = {way: session.run(inputs) for way, session in sessions.items()}
            ways = {way: partial(s.run, inputs) for way, s in sessions.items()}
            rounds: Mapping[str, Sequence[Sequence[float]]]
            if options.processor_time:
                rounds = processor_times(ways, options.rounds)
            else:
                taken = sample(ways, Plan(rounds=options.rounds))
                rounds = {way: taken[way].rounds for way in ways}
            ratio = paired_ratio(rounds[options.precision], rounds["fp32"])
            result[f"batch {batch}"] = {
                "median_ms": {
                    way: round(summarize(times).median.value * 1e3, 2)
                    for way, times in rounds.items()
                },
                f"{options.precision} / fp32": {
                    "value": round(ratio.value, 3),
                    "low": round(ratio.low, 3),
                    "high": round(ratio.high, 3),
                },
                "outputs": compared(outputs["fp32"], outputs[options.precision]),
            }
            print(json.dumps(result[f"batch {batch}"], indent=1), flush=True)
    result["environment"] = environment()
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
