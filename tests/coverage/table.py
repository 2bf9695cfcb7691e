"""Run the coverage suite and write ``docs/reference/coverage.md`` from what it gave.

.venv/bin/python tests/coverage/table.py              # all cases, a process each: the whole page
.venv/bin/python tests/coverage/table.py whisper t5   # some cases: print what they gave
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossfuse.bundle.store import Bundle

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "coverage.md"
TARGETS = ("onnx", "ort-cpu", "ort-cuda")
LIMIT_S = 600

HEAD = """# Coverage

Real architectures of `transformers` {transformers}, with tiny random configurations
(`tests/coverage/cases.py`). They are exported in float32 with dynamic batch and lengths, and with
padded masks where the model takes one. `make coverage` writes this page (torch {torch}, onnxruntime
{onnxruntime}); nothing here is written by hand.

| Column | Meaning |
|---|---|
| Attentions | self + cross, counted on the eager model |
| Captured by | how attentions were found: `interface`, `sdpa` or `pattern` |
| Fused | attentions that became one kernel of the target, of all |
| Parity | the worst error of `ort-cpu` over all points and outputs, beside its tolerance |

Parity is against eager PyTorch in float64. `ort-cuda` graphs are executed on the CPU here.

| Model | What was run | Attentions | Captured by | {targets} | Parity (tolerance) | Seconds |
|---|---|---|---|{bars}---|---|
"""


def run_case(name: str) -> dict[str, Any]:
    """Export one case; what came of it."""
    import torch

    import crossfuse
    from coverage.cases import CASES

    torch.set_num_threads(1)
    case = CASES[name]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        row = row_of(
            name,
            lambda: crossfuse.export(
                case.make(), Path(folder) / "b", TARGETS, allow_unfused=bool(case.unfused)
            ),
        )
    return row | {"seconds": round(time.monotonic() - begin, 1)}


def row_of(name: str, export: Callable[[], Bundle]) -> dict[str, Any]:
    """What came of an export of the case for all targets."""
    from transformers.utils import logging

    from coverage.cases import CASES
    from crossfuse.errors import CrossfuseError

    logging.set_verbosity_error()
    case = CASES[name]
    row: dict[str, Any] = {"name": name, "what": case.what, "why": case.why}
    row["expected"] = {
        "self": case.self_attentions,
        "cross": case.cross_attentions,
        "unknown": case.unfused,
    }
    try:
        bundle = export()
    except CrossfuseError as error:
        return row | {"failed": str(error)}
    ledger = bundle.ledger
    outputs = bundle.manifest.targets["ort-cpu"].parity["outputs"]
    worst = max(
        outputs.values(), key=lambda o: o["max_abs"] / o["tolerance"] if o["tolerance"] else 0.0
    )
    return row | {
        "counts": ledger.counts(),
        "captured": sorted({r.captured for r in ledger if r.captured}),
        "fused": {target: sum(ledger.counts(target).values()) for target in TARGETS},
        "reasons": {r.site: dict(r.reasons) for r in ledger if r.reasons},
        "dims": sorted(bundle.manifest.dims),
        "error": worst["max_abs"],
        "tolerance": worst["tolerance"],
    }


def in_process(name: str) -> dict[str, Any]:
    """`run_case` in a process of its own, so that models can't disturb each other."""
    command = [sys.executable, __file__, "--case", name]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "what": "", "failed": f"not done within {LIMIT_S} s"}
    last = done.stdout.splitlines()[-1:] or [""]
    if done.returncode or not last[0].startswith("{"):
        return {"name": name, "what": "", "failed": (done.stderr.splitlines() or ["crashed"])[-1]}
    row: dict[str, Any] = json.loads(last[0])
    print(f"{name}: {row.get('failed') or row['fused']}", file=sys.stderr)
    return row


def document(rows: Iterable[dict[str, Any]]) -> str:
    """The page."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("transformers", "torch")}
    text = HEAD.format(
        **packages,
        onnxruntime=version("onnxruntime-gpu"),
        targets=" | ".join(f"Fused, {target}" for target in TARGETS),
        bars="---|" * len(TARGETS) + "---|",
    ).replace("|---|---|\n", "|---|\n")
    notes = []
    for row in rows:
        if "failed" in row:
            notes.append(f"- **{row['name']}** does not work: {row['failed']}")
            cells = [row["name"], row["what"], *["failed"] * (len(TARGETS) + 4)]
        else:
            counts, total = row["counts"], sum(row["counts"].values())
            kinds = f"{counts.get('self', 0)} + {counts.get('cross', 0)}"
            unknown = counts.get("unknown", 0)
            if unknown:
                kinds += f", {unknown} not captured"
                notes.append(
                    f"- **{row['name']}**: {unknown} of {total} are not fused: {row['why']}."
                )
            fused = [f"{row['fused'][target]} of {total}" for target in TARGETS]
            parity = f"{row['error']:.1e} ({row['tolerance']:.1e})"
            cells = [
                row["name"],
                row["what"],
                kinds,
                ", ".join(row["captured"]),
                *fused,
                parity,
                str(row["seconds"]),
            ]
        text += f"| {' | '.join(cells)} |\n"
    if notes:
        text += "\n" + "\n".join(notes) + "\n"
    return text


def main() -> None:
    """Run cases; write the document where all ran."""
    sys.path.insert(0, str(ROOT / "tests"))
    from coverage.cases import CASES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options.case)))
        return
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(in_process, options.names or list(CASES)))
    if options.names:
        print(json.dumps(rows, indent=1))
        return
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(rows))
    print(DOCUMENT)


if __name__ == "__main__":
    main()
