"""Time and error of ``ort-cpu`` and ``openvino`` in fp32, bf16 and int8, beside other libraries, of
the suite's models at batch 1 and 8.

    python benchmarks/low_precision.py [NAME]… [--work FOLDER] [--rounds N] [--processor-time]
    python benchmarks/low_precision.py --table

Each model is exported once and built in every precision; int8 is calibrated on four sets of inputs,
and where it fails the check, ``mixed-int8`` takes its place. All of them and the rivals answer in
the same rounds, on inputs that nothing was chosen on. Ratios are over ``ort-cpu`` in fp32, round by
round, with their 95% interval; per way also the worst measures of the policy for low precision over
all outputs, against ``ort-cpu`` in fp32. ``--processor-time`` counts the time of one thread on the
processor in place of the clock: on a machine that does other things as well, that is what can be
compared. Results go to benchmarks/results/low_precision.json, model by model; ``--table`` prints
them as docs/precision.md has them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import suite

import crossfuse
from crossfuse import CrossfuseError, runtime
from crossfuse.api.sources import Source
from crossfuse.core.linear_ledger import in_words
from crossfuse.parity.low_precision import measured
from crossfuse.parity.session_check import reference_of
from crossfuse.profiling.baselines import Baselines
from crossfuse.profiling.environment import environment
from crossfuse.profiling.measure.inputs import inputs_at
from crossfuse.profiling.measure.sampling import Plan, sample
from crossfuse.profiling.measure.statistics import paired_ratio, summarize
from crossfuse.runtime.options import SessionOptions

RESULTS = Path(__file__).parent / "results" / "low_precision.json"
BATCHES = (1, 8)
SETS = 4
FIRST = "ort-cpu fp32"
WAYS = (
    ("ort-cpu", "fp32"),
    ("ort-cpu", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
RIVALS = ("openvino-f32", "openvino", "eager-bf16", "ort-int8")

Rounds = Mapping[str, Sequence[Sequence[float]]]


def tell(name: str, text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {name}: {text}", flush=True)


def bundles(name: str, work: Path) -> dict[str, tuple[Path, str, str]]:
    """Way → bundle, target and precision; what can't be built is left out, and told."""
    base = work / name / "openvino-bf16"
    step = partial(tell, name)
    if not base.exists():
        crossfuse.export(
            suite.CASES[name],
            base,
            ["openvino"],
            precision="bf16",
            whole=True,
            quick=True,
            step=step,
        )
    data = work / name / "calibration"
    if not data.exists():
        data.mkdir()
        for number in range(SETS):
            np.savez(data / f"{number}.npz", **other_inputs(name, base, 2, 100 + number))
    found = {}
    for target, precision in WAYS:
        if target == "openvino" and precision == "bf16":
            found["openvino bf16"] = (base, target, precision)
            continue
        tries = (precision, "mixed-int8") if precision == "int8" else (precision,)
        for one in tries:
            folder = work / name / f"{target}-{one}"
            if built(folder, base, target, one, data, step):
                found[f"{target} {one}"] = (folder, target, one)
                break
    return found


def built(
    folder: Path, base: Path, target: str, precision: str, data: Path, step: Callable[[str], None]
) -> bool:
    """Whether there is such a bundle now."""
    refused = folder.with_suffix(".refused")
    if folder.exists() or refused.exists():
        return folder.exists()
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(base, making, copy_function=os.link)
    settings = {} if precision == "fp32" else {"calibrate": data}
    try:
        crossfuse.build(making, target, precision=precision, step=step, **settings)
    except CrossfuseError as error:
        step(f"{target} in {precision}: {error}")
        refused.write_text(str(error))
        shutil.rmtree(making)
        return False
    making.rename(folder)
    return True


def other_inputs(name: str, bundle: Path, batch: int, seed: int) -> dict[str, Any]:
    """Inputs like the example's, every sample another one: normal floats of the same mean and
    deviation (sounds are shifted in time instead), ids that the example has, its masks."""
    rng = np.random.default_rng(seed)
    opened = crossfuse.open_bundle(bundle)
    example = reference_of(opened).points[0].inputs
    sizes = dict.fromkeys(suite.BATCH_OF.get(name, ("batch",)), batch)
    with runtime.load(opened, "openvino") as session:
        given = inputs_at(session.inputs, example, {**opened.manifest.example, **sizes})
    found = {}
    for key, array in given.items():
        if array.dtype.kind == "b" or "mask" in key:
            found[key] = array
        elif array.dtype.kind != "f":
            found[key] = rng.choice(array.ravel(), array.shape)
        elif name == "whisper":
            shifts = rng.integers(0, array.shape[-1], len(array))
            rolled = [np.roll(one, by, axis=-1) for one, by in zip(array, shifts, strict=True)]
            found[key] = np.stack(rolled)
        else:
            made = rng.standard_normal(array.shape) * array.std() + array.mean()
            found[key] = made.astype(array.dtype)
    return found


@contextmanager
def opened_ways(
    name: str,
    ways: Mapping[str, tuple[Path, str, str]],
    inputs: Mapping[str, Any],
    threads: int | None,
) -> Iterator[dict[str, Callable[[], Mapping[str, Any]]]]:
    """What is measured: a call of each session, and of each rival that can be had."""
    with ExitStack() as stack:
        chosen = SessionOptions(threads=threads)
        calls: dict[str, Callable[[], Mapping[str, Any]]] = {}
        for way, (folder, target, _) in ways.items():
            session = stack.enter_context(runtime.load(folder, target, options=chosen))
            calls[way] = partial(session.run, inputs)
        spec = Source.of(suite.CASES[name]).load()
        rivals = stack.enter_context(Baselines(spec, threads=threads))
        for rival in RIVALS:
            tell(name, f"making {rival}")
            try:
                calls[f"rival {rival}"] = rivals.make(rival, inputs)
            except Exception as error:  # noqa: BLE001 -- its library may raise anything
                tell(name, f"{rival}: {type(error).__name__}: {str(error)[:200]}")
        yield calls


def compared(wide: Mapping[str, Any], low: Mapping[str, Any]) -> dict[str, float]:
    """The worst of each measure over all outputs."""
    found = [measured([(low[name], truth)]) for name, truth in wide.items() if name in low]
    return {
        "cosine": round(min(one.cosine for one in found), 6),
        "relative_rms": round(max(one.relative_rms for one in found), 5),
        "top1": round(min(one.top1 for one in found), 5),
    }


def processor_times(calls: Mapping[str, Callable[[], Any]], count: int) -> Rounds:
    """Rounds of one call each, one way after the other; the first round is not kept."""
    found: dict[str, list[list[float]]] = {way: [] for way in calls}
    for number in range(count + 1):
        for way, run in calls.items():
            start = time.process_time_ns()
            run()
            if number:
                found[way].append([(time.process_time_ns() - start) / 1e9])
    return found


def measure(name: str, work: Path, rounds: int, processor_time: bool) -> dict[str, Any]:
    """Everything of one model."""
    ways = bundles(name, work)
    result: dict[str, Any] = {
        "measured": "processor time of one thread" if processor_time else "time, all threads",
        "linears": {
            way: in_words(crossfuse.open_bundle(folder).target(target).linears)
            for way, (folder, target, _) in ways.items()
        },
    }
    for batch in BATCHES:
        inputs = other_inputs(name, ways[FIRST][0].with_name("openvino-bf16"), batch, 7 + batch)
        with opened_ways(name, ways, inputs, 1 if processor_time else None) as calls:
            truth = calls[FIRST]()
            errors = {way: compared(truth, call()) for way, call in calls.items()}
            if processor_time:
                taken = processor_times(calls, rounds)
            else:
                sampled = sample(calls, Plan(rounds=rounds))
                taken = {way: sampled[way].rounds for way in calls}
        result[f"batch {batch}"] = {
            way: {
                "median_ms": round(summarize(taken[way]).median.value * 1e3, 2),
                "ratio": [round(number, 3) for number in interval(taken, way)],
                **errors[way],
            }
            for way in taken
        }
        tell(name, json.dumps(result[f"batch {batch}"]))
    result["environment"] = environment()
    return result


def interval(taken: Rounds, way: str) -> tuple[float, float, float]:
    """A way's time over that of the first, round by round."""
    found = paired_ratio(taken[way], taken[FIRST])
    return found.value, found.low, found.high


def table(results: Mapping[str, Any]) -> str:
    """Markdown: of each way its share of the first one's time, and its cosine."""
    names = [f"{target} {precision}" for target, precision in WAYS][1:]
    columns = [*names, *(f"rival {rival}" for rival in RIVALS)]
    lines = [
        f"| model, batch | {FIRST} ms | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    logarithms: dict[str, list[float]] = {column: [] for column in columns}
    for name, result in results.items():
        for batch in BATCHES:
            rows = result[f"batch {batch}"]
            cells = []
            for column in columns:
                row = rows.get(column) or rows.get(column.replace("int8", "mixed-int8"))
                cells.append("–")
                if row is not None:
                    value, low, high = row["ratio"]
                    mixed = "" if column in rows else "mixed: "
                    cells[-1] = f"{mixed}{value:.2f} ({low:.2f} to {high:.2f}), {row['cosine']:.5f}"
                    logarithms[column].append(math.log(value))
            lines.append(
                f"| {name}, {batch} | {rows[FIRST]['median_ms']:.4g} | {' | '.join(cells)} |"
            )
    means = [
        f"{math.exp(sum(v) / len(v)):.2f} of {len(v)}" if v else "–" for v in logarithms.values()
    ]
    lines.append(f"| geometric mean | | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is named, or everything; or print what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*suite.CASES, []], help="all where omitted")
    parser.add_argument("--work", type=Path, default=Path("benchmark-bundles"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the committed results")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in () if options.table else options.names or suite.CASES:
        (options.work / name).mkdir(parents=True, exist_ok=True)
        results[name] = measure(name, options.work, options.rounds, options.processor_time)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
