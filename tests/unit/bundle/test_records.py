"""What a manifest says in open mappings is checked where a reader relies on it."""

from __future__ import annotations

from typing import Any

import pytest

from crossfuse.bundle.records import ParityRecord, SourceRecord
from crossfuse.core.json_reader import Origin, decode
from crossfuse.errors import BundleError
from crossfuse.parity.report import OutputParity, ParityReport

ORIGIN = Origin("the manifest", "m", BundleError)
REPORT = ParityReport(
    "ort-cpu",
    "CPUExecutionProvider",
    "fp32",
    "float64",
    ({"batch": 2},),
    {"y": OutputParity(float("inf"), 1.0, 0.5, 1e-5, "floor of fp32", {"batch": 2}, False)},
    kinds=("example",),
)


def test_a_parity_report_is_a_parity_record() -> None:
    found = decode(ParityRecord, REPORT.to_json(), ORIGIN, closed=True)
    assert (found.passed, found.target, found.points) == (False, "ort-cpu", ({"batch": 2},))
    assert found.outputs["y"].max_abs is None, "infinity has no JSON"
    assert found.outputs["y"].tolerance == 1e-5


@pytest.mark.parametrize("key", ["passed", "target", "points", "outputs", "reference_dtype"])
def test_what_commands_print_is_there(key: str) -> None:
    data = REPORT.to_json()
    del data[key]
    with pytest.raises(BundleError, match=key):
        decode(ParityRecord, data, ORIGIN)


@pytest.mark.parametrize(
    "source",
    [{"size": "huge"}, {"seed": 2**63}, {"seed": -1}, {"seed": "1"}, {"task": 0}, {"name": ["a"]}],
)
def test_sources_have_types(source: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=next(iter(source))):
        decode(SourceRecord, source, ORIGIN)
    assert decode(SourceRecord, {"size": "tiny", "seed": 2**63 - 1}, ORIGIN).seed == 2**63 - 1
