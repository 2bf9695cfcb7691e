"""What nodes and inputs carry beside their computation."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from crossfuse.graph.metadata import (
    CAPTURED,
    MODULE,
    RANGE,
    SCOPES,
    SITE,
    index_range,
    inherited,
    module_path,
    site_of,
)


def node(**metadata: str) -> ir.Node:
    made = ir.node("Neg", [ir.Value(name="x")])
    made.metadata_props.update(metadata)
    return made


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'encoder', 'encoder.layers.0', 'add_1']", "encoder.layers.0"),
        ("['', 'encoder', 'encoder.attention@1', 'matmul']", "encoder.attention"),
        ("['', 'add']", ""),
        ("['add']", ""),
        ("[]", ""),
        ("[", ""),
        ("not a list", ""),
        ("7", ""),
        ("[" * 5000, ""),
    ],
)
def test_paths_from_pytorchs_exporter(scopes: str, path: str) -> None:
    assert module_path(node(**{SCOPES: scopes, MODULE: "other"})) == path


def test_paths_of_other_files() -> None:
    assert module_path(node(**{MODULE: "encoder"})) == "encoder"
    assert module_path(node()) == ""


def test_a_site_and_what_is_passed_on() -> None:
    made = node(**{MODULE: "m", SITE: "s", CAPTURED: "pattern", "note": "n"})
    assert site_of(made) == "s"
    assert site_of(node()) is None
    assert inherited(made) == {MODULE: "m", "note": "n"}
    inherited(made)["note"] = "changed"
    assert made.metadata_props["note"] == "n"


@pytest.mark.parametrize(("text", "expected"), [("0:9", (0, 9)), ("-2:", (-2, None))])
def test_ranges(text: str, expected: tuple[int, int | None]) -> None:
    value = ir.Value(name="ids")
    assert index_range(value) is None
    value.metadata_props[RANGE] = text
    assert index_range(value) == expected
