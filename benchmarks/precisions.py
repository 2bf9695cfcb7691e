"""Time and error of ``ort-cpu`` and ``openvino`` in fp32, bf16 and int8, beside other libraries, of
the suite's models at batch 1 and 8.

    python benchmarks/precisions.py [NAME]… [--work FOLDER] [--rounds N] [--prepare]
                                    [--processor-time]

Each model is exported once and built in every precision; int8 is chosen on the bundle's reference
inputs, and where it fails the check, ``mixed-int8`` takes its place. All of them and the rivals
answer in the same rounds, with all cores, on inputs that nothing was chosen on. Ratios are over
``ort-cpu`` in fp32, round by round, with their 95% interval; per way also the worst measures of the
policy for low precision over all outputs, against ``ort-cpu`` in fp32. The rival ``openvino-int8``
is calibrated on four sets of inputs of these sizes.

``--prepare`` exports and builds into the work folder and measures nothing; what is there already is
kept. ``--processor-time`` counts the time of one thread on the processor in place of the clock: on
a machine that does other things as well, that is what can be compared. Results go to
benchmarks/results/precisions/NAME-BATCH.json; precision_tables.py prints them as docs/precision.md
has them, and draws its plot.
"""

from __future__ import annotations

import argparse
import json
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

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "precisions"
BATCHES = (1, 8)
SETS = 4
FIRST = "ort-cpu fp32"
WAYS = (
    ("ort-cpu", "fp32"),
    ("ort-cpu", "int8"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
"""Target and precision."""
RIVALS = ("openvino-f32", "openvino", "openvino-int8", "eager-bf16", "ort-int8")

Run = Callable[[], Mapping[str, Any]]
Rounds = Mapping[str, Sequence[Sequence[float]]]


def tell(name: str, text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {name}: {text}", flush=True)


def bundles(name: str, work: Path) -> dict[str, tuple[Path, str]]:
    """Way → bundle and target; what can't be built is left out, and told."""
    base = work / name / "openvino-bf16"
    step = partial(tell, name)
    if not base.exists():
        source = suite.CASES[name]
        settings = {"precision": "bf16", "whole": True, "quick": True, "step": step}
        crossfuse.export(source, base, ["openvino"], **settings)
    found = {}
    for target, precision in WAYS:
        if (target, precision) == ("openvino", "bf16"):
            found["openvino bf16"] = base, target
            continue
        for one in (precision, "mixed-int8") if precision == "int8" else (precision,):
            way = f"{target} {one}"
            folder = work / name / f"{target}-{one}"
            if built(folder, base, target, one, step):
                found[way] = folder, target
                break
    return found


def built(
    folder: Path, base: Path, target: str, precision: str, step: Callable[[str], None]
) -> bool:
    """Whether there is such a bundle now."""
    refused = folder.with_name(f"{folder.name}.refused")
    if folder.exists() or refused.exists():
        return folder.exists()
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(base, making, copy_function=os.link)
    step(f"building {folder.name}")
    try:
        crossfuse.build(making, target, precision=precision, step=step)
    except CrossfuseError as error:
        step(f"{folder.name}: {error}")
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


def rivals(
    name: str, work: Path, inputs: Mapping[str, Any], batch: int, threads: int | None
) -> Iterator[tuple[str, Run]]:
    """What can be had of them; their exports stay in the work folder."""
    kept = work / name / f"rivals-{batch}"
    spec, base = Source.of(suite.CASES[name]).load(), work / name / "openvino-bf16"
    data = [other_inputs(name, base, batch, 100 + number) for number in range(SETS)]
    with Baselines(spec, threads=threads, kept=kept, calibration=data) as made:
        for rival in RIVALS:
            tell(name, f"making {rival}")
            try:
                yield rival, made.make(rival, inputs)
            except Exception as error:  # noqa: BLE001 -- its library may raise anything
                tell(name, f"{rival}: {type(error).__name__}: {str(error)[:200]}")


@contextmanager
def opened_ways(
    name: str,
    work: Path,
    ways: Mapping[str, tuple[Path, str]],
    batch: int,
    threads: int | None = None,
) -> Iterator[dict[str, Run]]:
    """What is measured: a call of each session, and of each rival that can be had."""
    inputs = other_inputs(name, work / name / "openvino-bf16", batch, 7 + batch)
    with ExitStack() as stack:
        calls: dict[str, Run] = {}
        for way, (folder, target) in ways.items():
            options = SessionOptions(threads=threads)
            session = stack.enter_context(runtime.load(folder, target, options=options))
            calls[way] = partial(session.run, inputs)
        for rival, run in rivals(name, work, inputs, batch, threads):
            calls[f"rival {rival}"] = run
        yield calls


def compared(wide: Mapping[str, Any], low: Mapping[str, Any]) -> dict[str, float]:
    """The worst of each measure over all outputs."""
    found = [measured([(low[name], truth)]) for name, truth in wide.items() if name in low]
    return {
        "cosine": round(min(one.cosine for one in found), 6),
        "relative_rms": float(f"{max(one.relative_rms for one in found):.3g}"),
        "top1": round(min(one.top1 for one in found), 5),
    }


def processor_times(calls: Mapping[str, Run], count: int) -> Rounds:
    """Rounds of one call each, one way after the other, in ns; the first round is not kept."""
    found: dict[str, list[list[float]]] = {way: [] for way in calls}
    for number in range(count + 1):
        for way, run in calls.items():
            start = time.process_time_ns()
            run()
            if number:
                found[way].append([float(time.process_time_ns() - start)])
    return found


def measure(name: str, work: Path, batch: int, plan: Plan, one_thread: bool) -> dict[str, Any]:
    """Everything of one model at one batch."""
    ways = bundles(name, work)
    with opened_ways(name, work, ways, batch, 1 if one_thread else None) as calls:
        truth = {key: np.array(array) for key, array in calls[FIRST]().items()}
        errors = {way: compared(truth, call()) for way, call in calls.items()}
        taken: Rounds
        if one_thread:
            taken = processor_times(calls, plan.rounds)
        else:
            sampled = sample(calls, plan)
            taken = {way: sampled[way].rounds for way in calls}
    return {
        "measured": "processor time of one thread" if one_thread else "time, all threads",
        "linears": {
            way: in_words(crossfuse.open_bundle(folder).target(target).linears)
            for way, (folder, target) in ways.items()
        },
        "ways": {
            way: {
                "median_ms": round(summarize(taken[way]).median.value * 1e3, 2),
                "ratio": [round(number, 4) for number in interval(taken, way)],
                **errors[way],
                "rounds_ms": [[round(ns / 1e6, 3) for ns in one] for one in taken[way]],
            }
            for way in taken
        },
        "environment": environment(),
    }


def interval(taken: Rounds, way: str, over: str = FIRST) -> tuple[float, float, float]:
    """A way's time over another's, round by round."""
    found = paired_ratio(taken[way], taken[over])
    return found.value, found.low, found.high


def main() -> None:
    """Measure what is named, or everything; or print what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*suite.CASES, []], help="all where omitted")
    parser.add_argument("--work", type=Path, default=Path("benchmark-bundles"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--batch", type=int, choices=BATCHES, help="both where omitted")
    parser.add_argument("--prepare", action="store_true", help="export and build, measure nothing")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    plan = Plan(rounds=options.rounds, seconds=options.seconds, calls=1)
    for name in options.names or suite.CASES:
        (options.work / name).mkdir(parents=True, exist_ok=True)
        for batch in (options.batch,) if options.batch else BATCHES:
            if options.prepare:
                ways = bundles(name, options.work)
                with opened_ways(name, options.work, ways, batch) as calls:
                    tell(name, f"batch {batch}: {', '.join(calls)}")
                continue
            result = measure(name, options.work, batch, plan, options.processor_time)
            RESULTS.mkdir(parents=True, exist_ok=True)
            suffix = ".one-thread" if options.processor_time else ""
            (RESULTS / f"{name}-{batch}{suffix}.json").write_text(json.dumps(result) + "\n")
            for way, row in result["ways"].items():
                print(
                    f"{way:28} {row['median_ms']:9.2f} {row['ratio']} {row['cosine']} "
                    f"{row['relative_rms']} {row['top1']}"
                )


if __name__ == "__main__":
    main()
