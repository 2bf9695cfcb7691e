"""Schemas say what the reader does, and describe in the docstrings' words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jsonschema
import pytest

from crossfuse.core.json_codec import encode
from crossfuse.core.json_form import AtLeast, Form
from crossfuse.core.json_schema import schema_of, schema_text, write_schema
from unit.core.test_json_reader import BAD, GOOD, Document


@dataclass(frozen=True)
class Thing:
    """A thing of some size.

    More about things.

    Attributes:
        size: in metres; None where
            nobody measured.
        name, label: what it is called.
    """

    __json__: ClassVar[Form] = Form(
        keys=("size", "name", "label", "area", "extra"),
        names={"label": "text"},
        sparse=frozenset({"extra"}),
    )

    name: str
    label: str
    size: Annotated[int | None, AtLeast(1)] = None
    extra: Mapping[str, Any] | None = None

    @property
    def area(self) -> float:
        """Its square, in square metres."""
        return float(self.size or 0) ** 2


def accepts(schema: Mapping[str, Any], data: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(data))


def test_descriptions_come_from_docstrings() -> None:
    schema = schema_of(Thing, "things")
    told = {name: about.get("description") for name, about in schema["properties"].items()}
    assert (schema["title"], schema["description"]) == ("things", "A thing of some size.")
    assert told == {
        "size": "in metres; null where nobody measured.",
        "name": "what it is called.",
        "text": "what it is called.",
        "area": "Its square, in square metres.",
        "extra": None,
    }


def test_closed_schemas_demand_all_that_is_written() -> None:
    schema = schema_of(Thing, "things", closed=True)
    jsonschema.Draft202012Validator.check_schema(schema)
    data = encode(Thing("a", "b"))
    assert accepts(schema, data)
    assert accepts(schema, data | {"size": 3, "extra": {"any": [1]}})
    assert not accepts(schema, data | {"size": 0})
    assert not accepts(schema, data | {"unknown": 1})
    assert not accepts(schema, {k: v for k, v in data.items() if k != "area"})
    assert accepts(schema_of(Thing, "things"), {"name": "a", "text": "b", "unknown": 1})


@pytest.mark.parametrize("name", list(BAD))
def test_the_schema_refuses_what_the_reader_refuses(name: str) -> None:
    schema = schema_of(Document, "documents")
    jsonschema.Draft202012Validator.check_schema(schema)
    assert accepts(schema, GOOD)
    if name == "float for int":
        return  # to JSON Schema 1.0 is an integer
    assert accepts(schema, BAD[name][0]) is (name == "own check")


def test_a_schema_is_written_where_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "things.json"
    text = schema_text(Thing, "things")
    write_schema(file, text)
    assert json.loads(file.read_text(encoding="utf-8")) == schema_of(Thing, "things")
    before = file.stat().st_mtime_ns
    write_schema(file, text)
    assert file.stat().st_mtime_ns == before
