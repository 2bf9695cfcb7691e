"""The schema in the package is the one that the classes give, and fits the manifests that exist."""

from __future__ import annotations

import json

import jsonschema
import pytest

from crossfuse.bundle.schema import SCHEMA_FILE, manifest_schema
from unit.bundle.test_manifest import BAD, FULL, MANIFESTS, changed

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def test_the_file_is_up_to_date() -> None:
    """`python -m crossfuse.bundle.schema` writes it."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == manifest_schema()
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_manifests_of_version_0_1_follow_it() -> None:
    for path in MANIFESTS:
        jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), SCHEMA)


BEYOND = {"dimension", "name", "range", "example"}
"""What a schema can't tell: orders, names of dimensions, and 2.0 is an integer to it."""


@pytest.mark.parametrize("name", list(BAD))
def test_what_the_reader_refuses_does_not_follow_it(name: str) -> None:
    path, value, _ = BAD[name]
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(changed(*path, to=value)))
    assert valid is (name in BEYOND)
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(FULL))
