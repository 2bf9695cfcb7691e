"""A report's JSON: all samples, and only what the schema says; what is read of it is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossfuse.errors import InputError
from crossfuse.profiling.report.report import LatencyReport, read_rows
from unit.profiling.test_page import a_report

REPORT = a_report()


def test_rows_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(REPORT.to_json()))
    rows = read_rows(file)
    assert [(row.name, row.sizes, row.failure) for row in rows] == [
        (row.name, row.sizes, row.failure) for row in REPORT.rows
    ]
    assert [row.rounds_ns for row in rows] == [row.rounds_ns for row in REPORT.rows]
    assert [row.machine for row in rows] == [row.machine for row in REPORT.rows]


def test_entries_and_their_order() -> None:
    data = REPORT.to_json()
    assert list(data) == [
        "schema_version", "bundle", "model", "target", "provider", "precision", "rows", "stages",
        "limits", "load", "generation", "cold_start", "break_even", "device_bytes", "ledger",
        "parity", "environment", "command",
    ]  # fmt: skip
    row = data["rows"][0]
    assert list(row) == [
        "name", "sizes", "latency", "ratio", "error", "reference_error", "joules", "failure",
        "unstable_rounds", "rounds_ns", "machine_ns",
    ]  # fmt: skip
    assert list(row["latency"]) == [
        "count", "p50", "p50_interval", "p90", "p95", "p99", "min", "mean",
    ]  # fmt: skip
    assert row["latency"]["p50"] == REPORT.rows[0].summary.median.value  # type: ignore[union-attr]
    tokens = data["generation"][0]
    assert list(tokens) == [
        "callers", "prompt", "new_tokens", "throughput", "failure", "first_p50", "first_p95",
        "token_p50", "token_p95", "firsts_ns", "gaps_ns",
    ]  # fmt: skip
    assert (tokens["first_p50"], tokens["token_p50"]) == (0.02, 0.003)
    stage = data["stages"][0]
    assert list(stage) == ["stage", "seconds", "runs", "nodes", "attained", "sites"]
    assert list(stage["attained"])[-3:] == ["fraction", "rate", "intensity"]
    bare = LatencyReport("b", "m", "ort-cpu", "CPU", "fp32", (), REPORT.stages).to_json()
    assert list(bare["stages"][0]) == ["stage", "seconds", "runs", "nodes"], "no limits, no share"


BAD: dict[str, tuple[Any, str]] = {
    "a list": ([1], "an object"),
    "no version": ({"rows": []}, "schema_version"),
    "newer": ({"schema_version": 2, "rows": []}, "newer crossfuse"),
    "no rows": ({"schema_version": 1}, "rows"),
    "a row": ({"schema_version": 1, "rows": [{"name": "crossfuse"}]}, r"rows\[0\]\.sizes"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_no_report(tmp_path: Path, name: str) -> None:
    data, message = BAD[name]
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("rounds_ns", [[]]), ("rounds_ns", [[0]]), ("rounds_ns", [["x"]]), ("rounds_ns", [3]),
     ("machine_ns", [-1]), ("sizes", {"batch": 1.5}), ("name", None)],
)  # fmt: skip
def test_rows_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    data = REPORT.to_json()
    data["rows"][1][key] = value
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"rows\[1\]\.{key}"):
        read_rows(tmp_path / "a.json")


def test_what_cant_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff")
    for name in ("a.json", "none.json"):
        with pytest.raises(InputError, match="can't be read"):
            read_rows(tmp_path / name)
