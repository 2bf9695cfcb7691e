"""Containers are opened and closed again, and hold the same."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree

from crossfuse.spec.containers import leaves_of, mapped, opened


@dataclass
class Plain:
    a: Any
    b: Any = None
    made: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.made.append(1)


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any


class Pair(NamedTuple):
    a: Any
    b: Any


class Bag:
    """Known to pytree by places alone."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bag) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _registered() -> Any:
    _pytree.register_pytree_node(Bag, lambda bag: (list(bag.items), None), lambda c, _: Bag(*c))
    yield
    del _pytree.SUPPORTED_NODES[Bag]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([1, 2], "0 1"),
        ((1, [2]), "0 1.0"),
        ({"a": 1, 3: {"c": 2}}, "a 3.c"),
        (collections.OrderedDict(b=1, a=2), "b a"),
        (collections.defaultdict(list, {"a": [1, 2]}), "a.0 a.1"),
        (collections.UserDict(a=1), "a"),
        (MappingProxyType({"a": 1}), "a"),
        (Pair(1, (2, 3)), "a b.0 b.1"),
        (Plain(1, {"x": 2}), "a b.x made.0"),
        (Frozen(1, Frozen(2, None)), "a b.a b.b"),
        (Bag(1, [2]), "0 1.0"),
        ({"empty": [], "a": ()}, ""),
    ],
)
def test_opened_and_closed(value: Any, names: str) -> None:
    before = repr(value)
    assert " ".join(name for name, _ in leaves_of("", value)) == names
    again = mapped(value, lambda _, leaf: leaf)
    assert again == value
    assert type(again) is (dict if isinstance(value, MappingProxyType) else type(value))
    doubled = mapped(value, lambda name, leaf: (name, leaf) if leaf is None else f"{name}!")
    assert [leaf for _, leaf in leaves_of("", doubled)] != [] or not names
    assert repr(value) == before, "the user's own is left as it is"


def test_leaves_are_told_by_name() -> None:
    found = dict(leaves_of("x", Plain(torch.ones(1), {"k": [None]})))
    assert list(found) == ["x.a", "x.b.k.0", "x.made.0"]
    assert mapped({"a": [1]}, lambda name, leaf: (name,) if leaf == 1 else leaf, "x") == {
        "a": [("x.a.0",)]
    }


def test_a_dataclass_is_not_made_anew() -> None:
    """What its class does when it is made was done once."""
    assert mapped(Plain(1), lambda _, leaf: leaf).made == [1]


@pytest.mark.parametrize("value", [None, 3, "text", {1, 2}, Plain, object(), torch.ones(2)])
def test_what_is_no_container(value: Any) -> None:
    assert opened(value) is None


def test_registered_dataclasses_leave_nothing_open() -> None:
    @dataclass
    class Known:
        a: Any
        b: Any = None

    torch.export.register_dataclass(Known)
    try:
        assert dict(leaves_of("k", Known(1))) == {"k.a": 1}
        assert mapped(Known(1), lambda _, leaf: leaf + 1) == Known(2)
    finally:
        del _pytree.SUPPORTED_NODES[Known]
