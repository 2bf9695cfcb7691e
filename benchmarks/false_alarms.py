"""How often `crossfuse profile --compare` is wrong: pairs of reports of one build, and slowdowns.

    python benchmarks/false_alarms.py [--pairs 20] [--slowdown 0.15] [--json FILE]

Each pair: a report, another of the same build, and one in which every `Session.run` busily waits
for so much of its own time more. Default plan of `crossfuse profile`, one after the other, each
with a freshly loaded session.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import crossfuse
from crossfuse.profiling.environment import environment
from crossfuse.profiling.report.compare import THRESHOLD, Change, compare_reports
from crossfuse.runtime.session import Session


def slower(by: float) -> Any:
    """A patch under which a session's runs take so much longer."""
    run = Session.run

    def delayed(self: Session, **inputs: Any) -> dict[str, Any]:
        start = time.perf_counter_ns()
        outputs = run(self, **inputs)
        end = time.perf_counter_ns() + by * (time.perf_counter_ns() - start)
        while time.perf_counter_ns() < end:
            pass
        return outputs

    return patch.object(Session, "run", delayed)


def report(bundle: Path, file: Path) -> Path:
    """Profile once."""
    found = crossfuse.profile(bundle, "ort-cpu", cold_starts=0, trace=False)
    file.write_text(json.dumps(found.to_json()))
    return file


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--slowdown", type=float, default=0.15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    same: list[Change] = []
    slow: list[Change] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = crossfuse.export(
            "cross_modal_attention", folder / "bundle", ["ort-cpu"], whole=True
        ).path
        for i in range(options.pairs):
            before, after = (
                report(bundle, folder / "before.json"),
                report(bundle, folder / "after.json"),
            )
            same += compare_reports(before, after)
            with slower(options.slowdown):
                slow += compare_reports(before, report(bundle, folder / "slow.json"))
            for name, change in (("same", same[-1]), ("slower", slow[-1])):
                print(
                    f"pair {i + 1}, {name}: {change.ratio}, machine {change.machine:.3f}: "
                    f"{change.verdict}",
                    flush=True,
                )
    result = {
        "pairs": options.pairs,
        "threshold": THRESHOLD,
        "verdicts": dict(Counter(change.verdict for change in same)),
        "false_alarms": sum(change.regressed for change in same),
        "slowdown": options.slowdown,
        "caught": sum(change.regressed for change in slow),
        "same": [change.ratio.to_json() for change in same],
        "slower": [change.ratio.to_json() for change in slow],
        "machine": [[change.machine for change in pair] for pair in zip(same, slow, strict=True)],
        "environment": environment(),
    }
    print(
        f"{result['false_alarms']} false alarms, {result['caught']} of {options.pairs} slowdowns "
        "caught"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
