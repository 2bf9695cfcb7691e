"""What is read is checked field by field; an error names the path, what was found and what should
be there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfuse.core.json_codec import encode
from crossfuse.core.json_form import AtLeast, Entries, Form, Length, Matches, OneOf
from crossfuse.core.json_reader import Origin, decode, decode_text, is_optional
from crossfuse.errors import BundleError, InputError

Name = Annotated[str, Matches("[a-z]+", "small letters", do="Rename it")]


@dataclass(frozen=True)
class Ends:
    __json__: ClassVar[Form] = Form(array=True)
    low: int
    high: int | None

    def __post_init__(self) -> None:
        if self.high is not None and self.high < self.low:
            raise InputError("the ends are out of order", got=f"{self.low}..{self.high}")


@dataclass(frozen=True)
class Item:
    name: Name
    kind: Annotated[str, OneOf(("big", "small"))]
    count: Annotated[int, AtLeast(0)] = 0
    share: float | None = None


@dataclass(frozen=True)
class Items:
    __json__: ClassVar[Form] = Form(whole="items")
    items: tuple[Item, ...]


@dataclass(frozen=True)
class About:
    seed: Annotated[int | None, AtLeast(0)] = None


@dataclass(frozen=True)
class Document:
    __json__: ClassVar[Form] = Form(keyed={"named": "name"}, version=2)
    items: Items
    named: Mapping[Name, Item]
    ends: Ends = Ends(0, None)
    shape: tuple[Annotated[int, AtLeast(0)] | str, ...] = ()
    three: Annotated[tuple[int, ...], Length(3, "three numbers")] = (1, 2, 3)
    about: Annotated[Mapping[str, Any], Entries(About)] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "schema_version": 2,
    "items": [{"name": "a", "kind": "big", "count": 3, "share": 1}],
    "named": {"b": {"kind": "small"}},
    "ends": [1, None],
    "shape": [2, "batch"],
    "about": {"seed": 3, "whatever": [1, {"x": None}]},
}
ORIGIN = Origin("the list", "list.json", BundleError, broken="Write it again", newer="Upgrade")


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """The good document with one value replaced."""
    data = json.loads(json.dumps(GOOD))
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return data


def test_a_good_document() -> None:
    found = decode(Document, GOOD, ORIGIN)
    assert found.items.items == (Item("a", "big", 3, 1.0),)
    assert isinstance(found.items.items[0].share, float), "1 is a number with a fraction, too"
    assert found.named == {"b": Item("b", "small")}
    assert (found.ends, found.shape, found.three) == (Ends(1, None), (2, "batch"), (1, 2, 3))
    assert found.about == {"seed": 3, "whatever": [1, {"x": None}]}, "open mappings stay whole"


BAD = {
    "no object": ([1], r"the list.*a list of 1, expected an object"),
    "missing": ({k: v for k, v in GOOD.items() if k != "items"}, r"json, items\).*'nothing'"),
    "missing inside": (changed("items", 0, to={"kind": "big"}), r"items\[0\]\.name.*expected str"),
    "type": (changed("items", 0, "count", to="3"), r"items\[0\]\.count\): got '3', expected int"),
    "bool": (changed("items", 0, "count", to=True), r"count\): got True, expected int"),
    "float for int": (changed("items", 0, "count", to=1.0), r"count\): got 1\.0, expected int"),
    "least": (changed("items", 0, "count", to=-1), r"got -1, expected 0 or more"),
    "one of": (changed("items", 0, "kind", to="huge"), r"got 'huge', expected big, small"),
    "pattern": (changed("items", 0, "name", to="../x"), r"small letters\. Rename it\."),
    "key": (changed("named", to={"B": {"kind": "big"}}), r"named\.B.*small letters"),
    "null": (changed("items", to=None), r"items\): got None, expected a list"),
    "not a list": (changed("items", to={}), r"items\): got an object, expected a list"),
    "array": (changed("ends", to=[1]), r"ends\): got a list of 1, expected 2 values"),
    "own check": (
        changed("ends", to=[2, 1]),
        r"the ends are out of order.*2\.\.1.*list.json, ends",
    ),
    "either": (changed("shape", 0, to=1.5), r"shape\[0\]\): got 1\.5, expected int or str"),
    "either, marked": (changed("shape", 0, to=-1), r"shape\[0\]\): got -1, expected 0 or more"),
    "length": (changed("three", to=[1]), "three numbers"),
    "open mapping": (changed("about", "seed", to=-1), r"about\.seed\): got -1"),
    "no version": ({k: v for k, v in GOOD.items() if k != "schema_version"}, "schema_version"),
    "older": (changed("schema_version", to=1), r"schema_version\): got 1, expected 2"),
    "version's type": (changed("schema_version", to="9"), r"schema_version\): got '9'"),
    "version true": (changed("schema_version", to=True), r"schema_version\): got True"),
    "newer": (
        changed("schema_version", to=3),
        r"newer crossfuse.*got schema version 3, expected at most 2\. Upgrade",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_documents(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(BundleError, match=message) as error:
        decode(Document, data, ORIGIN)
    assert "list.json" in str(error.value)
    with pytest.raises(BundleError, match=message):
        decode_text(Document, json.dumps(data), ORIGIN)


def test_unknown_entries_pass_unless_the_document_is_closed() -> None:
    data = changed("items", 0, "colour", to="red")
    assert decode(Document, data, ORIGIN) == decode(Document, GOOD, ORIGIN)
    with pytest.raises(BundleError, match=r"items\[0\]\.colour.*unknown entry.*count, kind, name"):
        decode(Document, data, ORIGIN, closed=True)
    assert decode(Document, GOOD, ORIGIN, closed=True).items.items[0].name == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"a": NaN}', "NaN is not allowed"),
        ('{"a": -Infinity}', "-Infinity is not allowed"),
        ('{"a": 1e999}', "1e999 is beyond the range"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_json(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message) as error:
        decode_text(Document, text, ORIGIN)
    assert "Write it again" in str(error.value)


def test_large_values_are_not_repeated_in_errors() -> None:
    with pytest.raises(BundleError) as error:
        decode(Document, changed("items", 0, "kind", to="x" * 10_000), ORIGIN)
    assert len(str(error.value)) < 400


def test_marks_around_optional_types() -> None:
    assert is_optional(Annotated[int | None, AtLeast(0)])
    assert is_optional(str | None)
    assert not is_optional(int | str)


@given(
    st.lists(
        st.builds(
            Item,
            st.text("abc", min_size=1),
            st.sampled_from(["big", "small"]),
            st.integers(0, 2**70),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
        )
    ),
    st.lists(st.integers(0, 9) | st.text(), max_size=4),
)
def test_what_is_written_is_read_again(items: list[Item], shape: list[int | str]) -> None:
    document = Document(Items(tuple(items)), {i.name: i for i in items}, shape=tuple(shape))
    assert decode_text(Document, json.dumps(encode(document)), ORIGIN) == document
