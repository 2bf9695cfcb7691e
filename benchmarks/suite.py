"""Latency of published models against every other library, at batch 1 and 8.

The models: the zoo, BLIP-base, Whisper tiny.en on speech, and DETR.

    python benchmarks/suite.py [NAME]… [--work FOLDER] [--rounds N] [--seconds S]
    python benchmarks/suite.py --table

Exports what is not in the work folder yet, profiles, and writes each report to
benchmarks/results/suite/NAME-BATCH.json. ``--table`` prints the committed results as
docs/reference/results.md has them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import overhead

import crossfuse
from crossfuse.profiling.measure.sampling import Plan

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "suite"
OVERHEAD = HERE / "results" / "overhead.json"
CASES = {
    "cross_modal_attention": "cross_modal_attention",
    "clip": "clip",
    "vilt": "vilt",
    "qformer": "qformer",
    "dalle": "dalle",
    "blip_retrieval": f"{HERE}/cases.py:blip_retrieval",
    "whisper": f"{HERE}/cases.py:whisper",
    "detr": f"{HERE}/cases.py:detr",
}
RENAMED = {"openvino": "openvino-f32"}
"""Names in reports of earlier versions, in which that baseline computed in fp32."""
RIVALS = ("eager", "compile", "onnx", "hf", "openvino-f32")
BATCHES = (1, 8)
BATCH_OF = {"clip": ("texts", "images")}
"""The dimensions that a batch stands for, where there is none of that name."""


def measure(name: str, work: Path, plan: Plan) -> None:
    """Export where needed, profile, write."""
    folder = work / name
    if not folder.exists():
        crossfuse.export(
            CASES[name],
            folder,
            targets=["ort-cpu"],
            step=lambda text: print(f"{name}: {text}", flush=True),
        )
    for batch in BATCHES:
        report = crossfuse.profile(
            folder,
            "ort-cpu",
            against=RIVALS,
            source=CASES[name],
            sweep=dict.fromkeys(BATCH_OF.get(name, ("batch",)), (batch,)),
            plan=plan,
            cold_starts=5 if batch == 1 else 0,
            step=lambda text: print(f"{name}: {text}", flush=True),
        )
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}-{batch}.json").write_text(
            json.dumps(report.to_json(), allow_nan=False) + "\n"
        )


def table() -> str:
    """Markdown: milliseconds of ours, and each rival's ratio to it with its interval."""
    lines = [
        f"| model, batch | crossfuse ms | {' | '.join(RIVALS)} |",
        "|---|---|" + "---|" * len(RIVALS),
    ]
    logarithms: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    fastest, slower = [], []
    for name in CASES:
        for batch in BATCHES:
            file = RESULTS / f"{name}-{batch}.json"
            if not file.exists():
                continue
            rows = json.loads(file.read_text())["rows"]
            here = {RENAMED.get(row["name"], row["name"]): row for row in rows}
            cells = [cell(here.get(rival)) for rival in RIVALS]
            own = here["crossfuse"]["latency"]
            low, high = own["p50_interval"]
            lines.append(
                f"| {name}, {batch} | {own['p50'] * 1e3:.4g} ({low * 1e3:.4g} to {high * 1e3:.4g}) "
                f"| {' | '.join(cells)} |"
            )
            ratios = {
                rival: here[rival]["ratio"][0]
                for rival in RIVALS
                if rival in here and here[rival]["ratio"]
            }
            for rival, ratio in ratios.items():
                logarithms[rival].append(math.log(ratio))
            best = min(ratios, key=lambda rival: ratios[rival])
            fastest.append(math.log(ratios[best]))
            if ratios[best] < 0.97:
                slower.append(
                    f"{name} at batch {batch}: {best} takes {ratios[best]:.2f} of our time"
                )
    means = [f"{math.exp(sum(v) / len(v)):.2f}" if v else "–" for v in logarithms.values()]
    lines.append(f"| geometric mean | | {' | '.join(means)} |")
    lines.append("")
    lines.append(
        f"Fastest rival of each row, geometric mean: {math.exp(sum(fastest) / len(fastest)):.3f} "
        "of our time."
    )
    lines.append(
        f"In the geometric mean over the table, the fastest rival: {best_of_all(logarithms)}."
    )
    lines += [f"More than 3% slower than the fastest rival: {text}." for text in slower]
    if OVERHEAD.exists():
        lines += [
            "",
            "| | crossfuse | ONNX Runtime alone |",
            "|---|---|---|",
            *overhead.lines(json.loads(OVERHEAD.read_text())),
        ]
    return "\n".join(lines)


def best_of_all(logarithms: dict[str, list[float]]) -> str:
    """The rival with the least geometric mean, of those that ran on most rows."""
    most = max(len(values) for values in logarithms.values())
    means = {name: math.exp(sum(v) / len(v)) for name, v in logarithms.items() if len(v) == most}
    name = min(means, key=lambda rival: means[rival])
    return f"{name}, {means[name]:.3f} of our time"


def cell(row: dict[str, Any] | None) -> str:
    """A rival's ratio to ours, or why there is none."""
    if row is None:
        return ""
    if row["failure"]:
        return "–"
    value, low, high = row["ratio"]
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure what is named, or everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*CASES, []], help="models; all where omitted")
    parser.add_argument("--work", type=Path, default=Path("benchmark-bundles"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--table", action="store_true", help="print the committed results")
    options = parser.parse_args()
    if not options.table:
        for name in options.names or CASES:
            measure(
                name, options.work, Plan(rounds=options.rounds, seconds=options.seconds, calls=1)
            )
        if not options.names:
            OVERHEAD.write_text(json.dumps(overhead.measure(), indent=1) + "\n")
    print(table())


if __name__ == "__main__":
    main()
