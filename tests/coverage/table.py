"""Run the coverage suite and write ``docs/reference/coverage.md`` from what it gave.

.venv/bin/python tests/coverage/table.py              # all cases, a process each: the whole page
.venv/bin/python tests/coverage/table.py whisper t5   # some cases: print what they gave
.venv/bin/python tests/coverage/table.py --eager      # who takes the planned inputs; no exports
.venv/bin/python tests/coverage/table.py --page       # the page, from the rows that are kept
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from coverage.rows import (  # noqa: E402
    TARGETS,
    Limits,
    RowFile,
    collected,
    eager_row,
    imported,
    is_done,
    run_case,
    stamp,
)

__all__ = ["TARGETS", "document"]

DOCUMENT = ROOT / "docs" / "reference" / "coverage.md"
KEPT = ROOT / ".coverage-rows.jsonl"

HEAD = """# Coverage

Real architectures, with tiny random configurations, exported in float32 with dynamic batch and
lengths where the model stands them, and with padded masks where it takes one. `make coverage`
writes this page (transformers {transformers}, torch {torch}, onnxruntime {onnxruntime}), and a run
that was ended goes on where it was; nothing here is written by hand.

| Column | Meaning |
|---|---|
| Takes | kinds of inputs, by their names; a model with several is called multimodal |
| Attentions | self + cross, counted on the eager model |
| Captured by | how attentions were found: `interface`, `sdpa` or `pattern` |
| Fused | attentions that became one kernel of the target, of all |
| Parity | the worst error of `ort-cpu` over all points and outputs, beside its tolerance |

Parity is against eager PyTorch in float64. `ort-cuda` graphs are executed on the CPU here. Where
the cell of a target is empty, the model was not exported for it.
"""

TABLE = """
| Model | What | Takes | Attentions | Captured by | {targets} | Parity (tolerance) | CPU, s |
|---|---|---|---|---|{bars}---|---|
"""

FAILED = """
What does not pass, where it stops, and why:

| Model | Where | Reason |
|---|---|---|
"""


STAGES = {
    "tiny": "no tiny model of it could be made",
    "inputs": "the eager model runs on none of the planned inputs",
    "model": "its spec fails",
    "trace": "it is not traced",
    "fusion": "not every attention is fused",
    "parity": "its numbers are not eager's",
    "limit": "not done within the time or memory of a row",
    "export": "the export is refused or fails",
}
"""Where rows fail, in words."""

_NOT_EAGER = ("inputs", "model")
"""Stages of models that were made, and did not run in eager on planned inputs."""


def document(tables: Iterable[tuple[str, Sequence[dict[str, Any]], Sequence[str]]]) -> str:
    """The page.

    Args:
        tables: each list's title, rows, and the names of cases without one.
    """
    from importlib.metadata import version

    packages = {name: version(name) for name in ("transformers", "torch")}
    text = HEAD.format(**packages, onnxruntime=version("onnxruntime-gpu"))
    for title, rows, left in tables:
        eager = [row["name"] for row in rows if not is_done(row)]
        text += _table(title, [row for row in rows if is_done(row)], eager, left)
    return text


def _table(
    title: str, rows: Sequence[dict[str, Any]], eager: Sequence[str], left: Sequence[str]
) -> str:
    passed = [row for row in rows if _passed(row)]
    failed = [row for row in rows if "failed" in row]
    text = f"\n## {title}\n\n{_counted(rows, passed)}{_further(rows, eager, left)}\n"
    if len(passed) < len(rows):
        names = [row["name"] for row in passed if _is_multimodal(row)]
        text += f"\nMultimodal ones that pass: {_listed(names)}.\n" if names else ""
    notes = []
    if len(failed) < len(rows):
        targets = " | ".join(f"Fused, {target}" for target in TARGETS)
        text += TABLE.format(targets=targets, bars="---|" * len(TARGETS))
    for row in rows:
        if "failed" not in row:
            cells, note = _cells(row)
            text += f"| {' | '.join(cells)} |\n"
            notes += [note] * bool(note)
    text += "\n" + "\n".join(notes) + "\n" if notes else ""
    text += FAILED if failed else ""
    for row in failed:
        where = STAGES[row.get("stage", "export")]
        text += f"| {_name(row)} | {where} | {_plain(row['failed'])} |\n"
    return text


def _counted(rows: Sequence[dict[str, Any]], passed: Sequence[dict[str, Any]]) -> str:
    """How many pass, of those that can be made and run in eager."""
    stages = Counter(row.get("stage", "export") for row in rows if "failed" in row)
    made = len(rows) - stages["tiny"]
    eager = made - sum(stages[stage] for stage in _NOT_EAGER)
    attending = eager - sum(not _attends(row) for row in rows)
    share = f" ({100 * len(passed) / attending:.1f} %)" if attending else ""
    before = ""
    if eager < len(rows):
        before = f"{len(rows)} were tried: {made} can be made, and {eager} of them run in eager. "
    if attending < eager:
        before += f"{eager - attending} of these attend to nothing and are not counted. "
    return (
        f"{before}**{len(passed)} of {attending}**{share} are exported with every attention fused "
        f"and pass parity, {sum(_is_multimodal(row) for row in passed)} of them multimodal."
    )


def _further(rows: Sequence[dict[str, Any]], eager: Sequence[str], left: Sequence[str]) -> str:
    """What else is to be said above a table: where rows fail, how they were checked, what was not
    run."""
    stages = Counter(row.get("stage", "export") for row in rows if "failed" in row)
    parts = [f"{count}: {STAGES[stage]}." for stage, count in stages.most_common()]
    said = f" Of the others: {' '.join(parts)}" if parts else ""
    if any(row.get("quick") for row in rows):
        of = {target for row in rows if row.get("quick") for target in row.get("fused", ())}
        said += (
            f" These are quick exports for {' and '.join(sorted(of)) or 'one target'}: compared at "
            "the examples and at one made point."
        )
    earlier = sum(bool(row.get("earlier")) for row in rows)
    if earlier:
        said += f" {earlier} rows were made by an earlier version of the code."
    for names, what in (
        (eager, "run in eager on planned inputs and were **not exported**"),
        (left, "were **not run** and say nothing"),
    ):
        if names:
            said += f"\n\n{len(names)} more {what}: {_listed(names)}."
    return said


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_plain(name.removeprefix("type:"), 80) for name in names)


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]).removeprefix("type:")


def _is_multimodal(row: dict[str, Any]) -> bool:
    return len(row.get("senses", ())) > 1


def _attends(row: dict[str, Any]) -> bool:
    """Its model has an attention, for all that is known."""
    return "failed" in row or sum(row["counts"].values()) > 0


def _passed(row: dict[str, Any]) -> bool:
    return "failed" not in row and _attends(row) and _is_fused(row)


def _is_fused(row: dict[str, Any]) -> bool:
    total = sum(row["counts"].values())
    return all(fused == total for fused in row["fused"].values())


def _cells(row: dict[str, Any]) -> tuple[list[str], str]:
    """A row's cells, and what is to be said of it below the table."""
    counts, total = row["counts"], sum(row["counts"].values())
    kinds, note = f"{counts.get('self', 0)} + {counts.get('cross', 0)}", ""
    unknown = counts.get("unknown", 0)
    if unknown:
        kinds += f", {unknown} not captured"
        note = f"- **{_name(row)}**: {unknown} of {total} are not fused: {row['why']}."
    return [
        _name(row),
        row["what"] or row.get("model", ""),
        ", ".join(row.get("senses", ())),
        kinds,
        ", ".join(row["captured"]),
        *(f"{row['fused'][t]} of {total}" if t in row["fused"] else "" for t in TARGETS),
        f"{row['error']:.1e} ({row['tolerance']:.1e})",
        str(row["seconds"]),
    ], note


def _plain(text: str, length: int = 400) -> str:
    """A reason as one line of Markdown."""
    text = text if len(text) <= length else f"{text[:length]}…"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main() -> None:
    """Run cases; write the document where all ran."""
    from coverage.case_lists import LISTS, all_cases, cases_of

    options = _options()
    kept = RowFile(options.rows, None if options.keep else stamp())
    if not options.page:
        imported()
        limits = Limits(options.limit, options.memory)
        names = options.names or list(all_cases())
        make = partial(run_case, targets=options.target or TARGETS, quick=options.quick)
        rows = (
            collected(names, kept, eager_row, jobs=options.jobs, limits=limits, enough=bool)
            if options.eager
            else collected(names, kept, make, jobs=options.jobs, limits=limits)
        )
        if options.names or options.target or options.quick or options.eager:
            print(json.dumps(rows, indent=1))
            return
    DOCUMENT.parent.mkdir(exist_ok=True)
    tables, now = [], stamp()
    for module, title in LISTS.items():
        names = list(cases_of(module))
        found = [kept.rows[name] for name in names if name in kept.rows]
        rows = [row | {"earlier": row.get("stamp") != now} for row in found]
        tables.append((title, rows, [name for name in names if name not in kept.rows]))
    DOCUMENT.write_text(document(tables))
    print(DOCUMENT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=600, help="seconds of CPU for each row")
    parser.add_argument("--memory", type=float, default=6, help="GiB for each row's process")
    parser.add_argument("--rows", type=Path, default=KEPT, help="where finished rows are kept")
    parser.add_argument("--keep", action="store_true", help="rows of other code count too")
    parser.add_argument("--target", action="append", help="one of several; for some cases")
    parser.add_argument("--quick", action="store_true", help="quick checks; for some cases")
    parser.add_argument(
        "--page", action="store_true", help="write the page from rows that are kept; run nothing"
    )
    parser.add_argument("--eager", action="store_true", help="make models and plan inputs, only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
