"""Dataclasses become the JSON that their forms say, and nothing that JSON lacks gets in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from crossfuse.core.json_codec import JsonData, encode, json_text
from crossfuse.core.json_form import Form


@dataclass(frozen=True)
class Pair:
    __json__: ClassVar[Form] = Form(array=True)
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    name: str
    size: int


@dataclass(frozen=True)
class Parts:
    __json__: ClassVar[Form] = Form(whole="items")
    items: tuple[Part, ...]


@dataclass(frozen=True)
class Whole(JsonData):
    __json__: ClassVar[Form] = Form(
        keys=("twice", "value", "pair", "parts", "named", "absent"),
        names={"value": "v"},
        sparse=frozenset({"absent"}),
        keyed={"named": "name"},
        gaps=frozenset({"value"}),
        version=3,
    )
    value: float
    pair: Pair = Pair(1.0, 2.0)
    parts: Parts = Parts(())
    named: Mapping[str, Part] = field(default_factory=dict)
    absent: int | None = None

    @property
    def twice(self) -> float:
        """Twice the value, or 0 where there is none."""
        return 2 * self.value if math.isfinite(self.value) else 0.0


def test_the_form_decides_keys_order_and_shapes() -> None:
    whole = Whole(1.5, parts=Parts((Part("a", 1),)), named={"b": Part("b", 2)})
    text = json.dumps(whole.to_json())
    assert text == (
        '{"schema_version": 3, "twice": 3.0, "v": 1.5, "pair": [1.0, 2.0], '
        '"parts": [{"name": "a", "size": 1}], "named": {"b": {"size": 2}}}'
    )
    assert encode(Whole(1.5, absent=0))["absent"] == 0, "left out where None, not where false"


def test_gaps_are_null_and_only_they() -> None:
    assert encode(Whole(float("inf")))["v"] is None
    assert encode(Whole(float("nan")))["v"] is None
    with pytest.raises(ValueError, match="JSON"):
        json_text(encode(Pair(float("nan"), 1.0)))


def test_a_class_without_a_form_is_its_fields() -> None:
    assert list(encode(Part("a", 1)).items()) == [("name", "a"), ("size", 1)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ({"a": (1, [2, None])}, {"a": [1, [2, None]]}),
        ({1: "key"}, {"1": "key"}),
    ],
)
def test_plain_values(value: Any, expected: Any) -> None:
    found = encode(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.ones(2), Part])
def test_what_has_no_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no JSON"):
        encode(value)


def test_text_keeps_numpys_numbers_and_refuses_nan() -> None:
    assert json_text({"n": np.float64(0.25)}, sort_keys=True) == '{"n": 0.25}'
    for value in (float("nan"), np.float64("inf")):
        with pytest.raises(ValueError, match="JSON"):
            json_text({"n": value})
    with pytest.raises(TypeError, match="set has no JSON"):
        json_text({1})
