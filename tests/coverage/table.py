"""Run the coverage suite and write ``docs/coverage.md`` from what it gave: ``python -m coverage.table`` in ``tests``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "coverage.md"
TARGETS = ("ort-cpu", "ort-cuda")


def run_case(name: str) -> dict[str, Any]:
    """Export one case; what was found, or why not."""
    import torch
    from transformers.utils import logging

    import crossfuse
    from coverage.cases import CASES

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    begin = time.monotonic()
    row: dict[str, Any] = {"name": name, "what": CASES[name].what, "expected": [CASES[name].self_attentions, CASES[name].cross_attentions]}
    try:
        with tempfile.TemporaryDirectory() as folder:
            bundle = crossfuse.export(CASES[name].make(), Path(folder) / "b", TARGETS, allow_unfused=True)
            ledger = bundle.ledger
            row["kinds"] = ledger.counts()
            row["sites"] = {r.site: [r.kind, r.captured, r.kv_num_heads, dict(r.reasons)] for r in ledger}
            row["captured"] = sorted({r.captured for r in ledger if r.captured})
            row["dims"] = sorted(bundle.manifest.dims)
            row["fused"] = {t: sum(bool(r.fused[t]) for r in ledger) for t in TARGETS}
            parity = bundle.manifest.targets["ort-cpu"].parity
            row["parity"] = parity
    except crossfuse.CrossfuseError as error:
        row["failed"] = str(error)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
        row["traceback"] = traceback.format_exc()[-3000:]
    row["seconds"] = round(time.monotonic() - begin, 1)
    return row


def main() -> None:
    from coverage.cases import CASES

    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ProcessPoolExecutor(2, max_tasks_per_child=4) as pool:
        rows = list(pool.map(run_case, options.names or list(CASES)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(row["name"], row.get("kinds"), row["expected"], row.get("fused"), row["seconds"], row.get("failed", "")[:600], file=sys.stderr)


if __name__ == "__main__":
    main()
