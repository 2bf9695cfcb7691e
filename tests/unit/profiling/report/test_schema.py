"""The schema in the package is the one that the classes give, and reports follow it."""

from __future__ import annotations

import json

import jsonschema
import pytest

from crossfuse.profiling.report.report import LatencyReport
from crossfuse.profiling.report.schema import SCHEMA_FILE, report_schema
from unit.profiling.test_page import a_report

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def test_the_file_is_up_to_date() -> None:
    """`python -m crossfuse.profiling.report.schema` writes it."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == report_schema()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_reports_follow_it() -> None:
    jsonschema.validate(a_report().to_json(), SCHEMA)
    jsonschema.validate(LatencyReport("b", "m", "t", "p", "fp32", ()).to_json(), SCHEMA)


@pytest.mark.parametrize("key", ["rows", "limits", "cold_start", "environment", "schema_version"])
def test_reports_hold_all_of_it_and_no_more(key: str) -> None:
    data = a_report().to_json()
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert not validator.is_valid({k: v for k, v in data.items() if k != key})
    assert not validator.is_valid(data | {"more": 1})
    data["rows"][0]["more"] = 1
    assert not validator.is_valid(data)
