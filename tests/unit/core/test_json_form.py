"""Forms and marks: what a class says about its JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar

import pytest

from crossfuse.core.json_form import (
    AtLeast,
    Form,
    Length,
    Mark,
    Matches,
    OneOf,
    Where,
    attributes_of,
    form_of,
    hints_of,
    is_required,
)


@dataclass(frozen=True)
class Sample:
    __json__: ClassVar[Form] = Form(
        keys=("given", "made", "kept", "maybe", "listed"),
        names={"made": "m"},
        required=frozenset({"listed"}),
    )
    given: Annotated[int, AtLeast(1)]
    maybe: str | None
    kept: bool = False
    listed: tuple[int, ...] = field(default_factory=tuple)

    @property
    def made(self) -> float:
        return 1.0

    @cached_property
    def never_written(self) -> int:
        return 1


def test_keys_and_types_of_fields_and_properties() -> None:
    assert attributes_of(Sample) == ("given", "made", "kept", "maybe", "listed")
    assert (form_of(Sample).key("made"), form_of(Sample).key("kept")) == ("m", "kept")
    hints = hints_of(Sample)
    assert hints["made"] is float
    assert hints["given"].__metadata__ == (AtLeast(1),)


def test_what_a_reader_demands() -> None:
    demanded = {
        name: is_required(Sample, name, optional=name == "maybe")
        for name in ("given", "maybe", "kept", "listed")
    }
    assert demanded == {"given": True, "maybe": False, "kept": False, "listed": True}


@pytest.mark.parametrize(
    ("mark", "good", "bad"),
    [
        (AtLeast(1), [1, 7], [0, -1]),
        (AtLeast(0, 2**63), [0, 2**63 - 1], [-1, 2**63]),
        (OneOf(("a", "b")), ["a"], ["", "c"]),
        (Matches("[a-z]+", "letters"), ["abc"], ["", "a1", "abc\n", "\nabc"]),
        (Length(2, "two"), [(1, 2)], [(), (1, 2, 3)]),
        (Where(bool, "something"), [1], [0]),
    ],
)
def test_marks(mark: Mark, good: list[Any], bad: list[Any]) -> None:
    assert isinstance(mark, Mark)
    assert mark.expected
    assert all(mark.accepts(value) for value in good)
    assert not any(mark.accepts(value) for value in bad)
