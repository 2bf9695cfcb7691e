"""Rows of the coverage table: each case exported in a process of its own, with a limit of time and
of memory, several at a time; what is done is kept in a file of one JSON line per row, so that a run
goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coverage.cases import Case
    from crossfuse import ModelSpec
    from crossfuse.bundle.store import Bundle

__all__ = ["TARGETS", "RowFile", "collected", "row_of", "run_case", "stamp"]

ROOT = Path(__file__).parents[2]
TARGETS = ("onnx", "ort-cpu", "ort-cuda")


def run_case(name: str, targets: Sequence[str], *, quick: bool, memory: float) -> dict[str, Any]:
    """Export one case; what came of it.

    Args:
        name: of the case.
        targets: to export for.
        quick: the export's quick checks in place of all.
        memory: GiB that this process may take for its data.
    """
    import resource

    import torch

    import crossfuse
    from coverage.case_lists import all_cases

    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    case = all_cases()[name]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        row = row_of(
            case,
            lambda spec: crossfuse.export(
                spec,
                Path(folder) / "b",
                targets,
                allow_unfused=bool(case.unfused),
                quick=quick,
            ),
            targets,
        )
    return row | {"seconds": round(time.monotonic() - begin, 1)}


def row_of(
    case: Case, export: Callable[[ModelSpec], Bundle], targets: Sequence[str] = TARGETS
) -> dict[str, Any]:
    """What came of an export of the case; where it failed, the reason.

    Args:
        case: the model.
        export: of its spec, for the targets.
        targets: of the export.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    row: dict[str, Any] = {"name": case.name, "what": case.what, "why": case.why}
    row["expected"] = {
        "self": case.self_attentions,
        "cross": case.cross_attentions,
        "unknown": case.unfused,
    }
    try:
        spec = case.make()
        row |= {"model": spec.name, "senses": senses_of(spec.inputs)}
        bundle = export(spec)
    except Exception as error:  # noqa: BLE001 -- whatever fails is the row's reason
        return row | {"failed": reason_of(error)}
    ledger = bundle.ledger
    return row | {
        "counts": ledger.counts(),
        "captured": sorted({r.captured for r in ledger if r.captured}),
        "fused": {target: sum(ledger.counts(target).values()) for target in targets},
        "reasons": {r.site: dict(r.reasons) for r in ledger if r.reasons},
        "dims": sorted(bundle.manifest.dims),
        **_worst(bundle, targets),
    }


def _worst(bundle: Bundle, targets: Sequence[str]) -> dict[str, float]:
    """The error nearest to its tolerance, on the CPU's target where it is among them."""
    target = "ort-cpu" if "ort-cpu" in targets else targets[0]
    outputs = bundle.manifest.targets[target].parity["outputs"]
    worst = max(
        outputs.values(), key=lambda o: o["max_abs"] / o["tolerance"] if o["tolerance"] else 0.0
    )
    return {"error": worst["max_abs"], "tolerance": worst["tolerance"]}


def reason_of(error: Exception) -> str:
    """An exception as the table's reason, on one line."""
    from crossfuse.errors import CrossfuseError

    text = " ".join(str(error).split())
    named = isinstance(error, CrossfuseError) or type(error).__module__.startswith("coverage")
    return text if named else f"{type(error).__name__}: {text}"


def senses_of(inputs: Iterable[str]) -> list[str]:
    """What kinds of things a model takes, told by the names of its inputs."""
    kinds = {
        "text": ("input_ids", "inputs", "texts"),
        "image": ("pixel", "patches", "image", "visual"),
        "sound": ("input_features", "input_values", "audio", "speech"),
        "page": ("bbox",),
        "action": ("state", "actions"),
        "states of others": ("encoder_hidden_states", "cross_attention_states"),
    }
    names = list(inputs)
    return [
        kind
        for kind, words in kinds.items()
        if any(word in name for name in names for word in words)
    ]


def stamp() -> str:
    """Changes when the package's code, the cases, or a library's version does: then rows are made
    again."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    for package in ("transformers", "torch", "onnxruntime-gpu"):
        digest.update(version(package).encode())
    for folder in (ROOT / "src", ROOT / "tests" / "coverage"):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".txt")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class RowFile:
    """Rows on disk, one JSON line each; the last line of a name stands.

    Args:
        path: of the file; it need not exist.
        of: the stamp of rows that count; None for all.
    """

    def __init__(self, path: Path, of: str | None) -> None:
        self._path, self._stamp, self._lock = path, of, Lock()
        self.rows: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a run was ended while it wrote
            if of is None or row.get("stamp") == of:
                self.rows[row["name"]] = row

    def keep(self, row: dict[str, Any]) -> None:
        """Add a row, to the file at once."""
        row = row | {"stamp": self._stamp or stamp()}
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            self.rows[row["name"]] = row


def collected(
    names: Sequence[str],
    kept: RowFile,
    command: Sequence[str],
    *,
    jobs: int,
    limit: float,
) -> list[dict[str, Any]]:
    """The rows of cases, those made that are not kept.

    Args:
        names: of the cases.
        kept: where rows are, and go.
        command: makes the row of the case whose name is put behind it, and prints it as its last
            line.
        jobs: processes at a time.
        limit: seconds for each.
    """
    pending = [name for name in names if name not in kept.rows]
    print(f"{len(names) - len(pending)} of {len(names)} rows are kept", file=sys.stderr)

    def make(name: str) -> None:
        row = in_process(name, [*command, name], limit)
        kept.keep(row)
        print(f"{name}: {row.get('failed') or row['fused']}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(make, pending))
    return [kept.rows[name] for name in names]


def in_process(name: str, command: Sequence[str], limit: float) -> dict[str, Any]:
    """A row from a process of its own, so that models can't disturb each other."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src")))
    }
    failed = {"name": name, "what": ""}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return failed | {"failed": f"not done within {limit:.0f} s"}
    last = done.stdout.splitlines()[-1:] or [""]
    if done.returncode or not last[0].startswith("{"):
        said = (done.stderr.splitlines() or ["it said nothing"])[-1]
        return failed | {"failed": f"its process ended with {done.returncode}: {said}"}
    row: dict[str, Any] = json.loads(last[0])
    return row
