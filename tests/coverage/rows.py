"""Rows of the coverage table: each case exported in a process of its own, with a limit of CPU time
and of memory, several at a time; what is done is kept in a file of one JSON line per row, so that a
run goes on where the last one ended.

The processes are forks of this one, which has imported the libraries and translated one small
model: that is most of what a tiny model's row would cost otherwise.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coverage.cases import Case
    from crossfuse import ModelSpec
    from crossfuse.bundle.store import Bundle

__all__ = [
    "ROOT",
    "TARGETS",
    "Limits",
    "RowFile",
    "collected",
    "eager_row",
    "imported",
    "is_done",
    "reason_of",
    "row_of",
    "run_case",
    "stamp",
]

ROOT = Path(__file__).parents[2]
TARGETS = ("onnx", "ort-cpu", "ort-cuda")

LIBRARIES = (
    "torch.export",
    "torch.onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "sympy",
    "transformers.models.auto.modeling_auto",
    "transformers.exporters",
    "crossfuse.api.export",
    "coverage.case_lists",
)
"""What rows import, whatever their model is."""

_SAID = {
    "the model itself refuses the inputs": "inputs",
    "its inputs can't be told": "inputs",
    "torch.export can't trace": "trace",
}
"""Words of errors that say where a model failed."""

PATIENCE = 20
"""Times its CPU time that a row's process may take on the clock: it may have to wait, or hang."""


@dataclass(frozen=True)
class Limits:
    """What each row may take.

    Attributes:
        seconds: of CPU time.
        memory: GiB of data; none where 0.
    """

    seconds: float
    memory: float = 0.0


def imported() -> None:
    """Import what rows need, so that their processes need not, and let PyTorch start no threads.

    A small model is traced and translated, too: PyTorch's exporters set up much when they are first
    used.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    from crossfuse.api.sources import Source, SourceOptions
    from crossfuse.export.fuse import fuse

    fuse(Source.of("clip", SourceOptions(size="tiny")).load())
    gc.freeze()  # a collection would write to what the processes share


def run_case(name: str, targets: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Export one case; what came of it.

    Args:
        name: of the case.
        targets: to export for.
        quick: the export's quick checks in place of all.
    """
    import crossfuse
    from coverage.case_lists import all_cases

    case = all_cases()[name]
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
    return row | {"quick": quick}


def eager_row(name: str) -> dict[str, Any]:
    """A case's row up to where its export would begin: its model runs in eager on planned inputs,
    or why not.

    Args:
        name: of the case.
    """
    from coverage.case_lists import all_cases

    row = row_of(all_cases()[name], _not_exported)
    return row if "failed" not in row or row["stage"] != "export" else _without_failure(row)


def _not_exported(spec: ModelSpec) -> Any:
    raise NotImplementedError(spec.name)


def _without_failure(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "failed"} | {"stage": "eager"}


def is_done(row: dict[str, Any]) -> bool:
    """Whether a row needs no export any more."""
    return row.get("stage") != "eager"


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
    row["stage"] = "model"
    try:
        spec = case.make()
        row |= {"model": spec.name, "senses": senses_of(spec.inputs), "stage": "export"}
        bundle = export(spec)
    except Exception as error:  # noqa: BLE001 -- whatever fails is the row's reason
        return row | {"failed": reason_of(error), "stage": _stage(error) or row["stage"]}
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
    """An exception as the table's reason, on one line, with paths below this repository's
    folder."""
    from crossfuse.errors import CrossfuseError

    text = " ".join(str(error).split()).replace(f"{ROOT}/", "")
    named = isinstance(error, CrossfuseError) or type(error).__module__.startswith("coverage")
    return text if named else f"{type(error).__name__}: {text}"


def _stage(error: Exception) -> str | None:
    """Where a model failed, told by its error; None where that isn't known.

    ``tiny``: none could be made; ``inputs``: none that it takes could be planned; ``trace``: it is
    not traced; ``fusion``: not every attention became a fused operator; ``parity``: its numbers
    are not eager's.
    """
    from coverage.shrink import CannotShrinkError
    from crossfuse.errors import FusionError, ParityError

    for kind, stage in (
        (CannotShrinkError, "tiny"),
        (FusionError, "fusion"),
        (ParityError, "parity"),
    ):
        if isinstance(error, kind):
            return stage
    said = str(error)
    return next((stage for words, stage in _SAID.items() if words in said), None)


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
        self._path, self._stamp = path, of
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
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            self.rows[row["name"]] = row


def collected(
    names: Sequence[str],
    kept: RowFile,
    make: Callable[[str], dict[str, Any]],
    *,
    jobs: int,
    limits: Limits,
    enough: Callable[[dict[str, Any]], bool] = is_done,
) -> list[dict[str, Any]]:
    """The rows of cases, those made that are not kept.

    Args:
        names: of the cases.
        kept: where rows are, and go.
        make: a case's row, from its name; it runs in a process of its own.
        jobs: processes at a time.
        limits: of each.
        enough: whether a kept row stands.
    """
    pending = [name for name in names if name not in kept.rows or not enough(kept.rows[name])]
    print(f"{len(names) - len(pending)} of {len(names)} rows are kept", file=sys.stderr)
    running: list[_Row] = []
    while pending or running:
        while pending and len(running) < jobs:
            running.append(_Row(pending.pop(0), make, limits))
        wait([row.sentinel for row in running], timeout=1)
        for row in [row for row in running if row.ended()]:
            running.remove(row)
            made = row.made()
            kept.keep(made)
            said = made.get("failed") or made.get("fused") or made["stage"]
            print(f"{made['name']}: {said}", file=sys.stderr, flush=True)
    return [kept.rows[name] for name in names]


class _Row:
    """A row that is being made.

    Args:
        name: of the case.
        make, limits: as of `collected`.
    """

    def __init__(self, name: str, make: Callable[[str], dict[str, Any]], limits: Limits) -> None:
        self._name, self._limits, self._begin = name, limits, time.monotonic()
        self._late = False
        self._folder = tempfile.TemporaryDirectory()
        self._process = multiprocessing.get_context("fork").Process(
            target=_make, args=(name, make, limits, Path(self._folder.name))
        )
        self._process.start()
        self.sentinel = self._process.sentinel

    def ended(self) -> bool:
        """Whether it is done; a process that takes too long by the clock is ended."""
        if time.monotonic() - self._begin > PATIENCE * self._limits.seconds:
            self._late = True
            self._process.kill()
            self._process.join()
        return not self._process.is_alive()

    def made(self) -> dict[str, Any]:
        """The row, or why its process made none."""
        self._process.join()
        folder, code = Path(self._folder.name), self._process.exitcode
        row: dict[str, Any] = {"name": self._name, "what": "", "stage": "export"}
        try:
            row |= json.loads((folder / "row.json").read_text())
            return row
        except (OSError, json.JSONDecodeError):
            if self._late or code == -signal.SIGXCPU:
                row["stage"] = "limit"
                return row | {"failed": f"not done within {self._limits.seconds:.0f} s of CPU time"}
            said = ((folder / "said").read_text().splitlines() or ["it said nothing"])[-1]
            return row | {"failed": f"its process ended with {code}: {said}"}
        finally:
            self._folder.cleanup()


def _make(name: str, make: Callable[[str], dict[str, Any]], limits: Limits, folder: Path) -> None:
    """Make a row in this process, and leave it in the folder."""
    with (folder / "said").open("w") as said, _heard(said.fileno()):
        if limits.memory:
            most = int(limits.memory * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        seconds = int(limits.seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
        tempfile.tempdir = str(folder)  # what a killed process leaves goes with it
        row = make(name)
    row["seconds"] = round(time.process_time(), 1)
    (folder / "row.json").write_text(json.dumps(row))


@contextmanager
def _heard(file: int) -> Iterator[None]:
    """Both outputs of this process go into a file; it is the process's end that follows."""
    for output in (1, 2):
        os.dup2(file, output)
    yield
    sys.stdout.flush()
    sys.stderr.flush()
