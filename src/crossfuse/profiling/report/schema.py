"""The latency report's JSON schema, made from its classes: ``python -m
crossfuse.profiling.report.schema`` writes it."""

from __future__ import annotations

from pathlib import Path

from crossfuse.core.json_schema import schema_text, write_schema
from crossfuse.profiling.report.report import LatencyReport

__all__ = ["SCHEMA_FILE", "report_schema"]

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def report_schema() -> str:
    """The schema's text."""
    return schema_text(LatencyReport, "crossfuse latency report", closed=True)


if __name__ == "__main__":
    write_schema(SCHEMA_FILE, report_schema())
