"""One grammar of dimensions for specs, contexts, profiles of shapes and graphs."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfuse.core.dimensions import (
    fold,
    is_name,
    multiple_of,
    rename,
    size_at,
    symbols_in,
)
from crossfuse.core.tensors import Dim
from crossfuse.errors import InputError

SIZES = {"batch": 6, "length": 11, "a.b": 4, "b": 5, "größe": 7}


@pytest.mark.parametrize(
    ("text", "names", "size"),
    [
        (3, set(), 3),
        (None, set(), None),
        ("batch", {"batch"}, 6),
        ("a.b", {"a.b"}, 4),
        ("2*a.b + b", {"a.b", "b"}, 13),
        ("größe", {"größe"}, 7),
        ("(length - 1)//2 + 1", {"length"}, 6),
        ("length//2*2", {"length"}, 10),
        ("-batch + 20 % 7", {"batch"}, 0),
        ("2**3**1*batch", {"batch"}, 48),
        ("-2**2", set(), -4),
        ("batch/3", {"batch"}, 2),
        ("batch/4", {"batch"}, None),
        ("Max(1, batch - 10)", {"batch"}, 1),
        ("Min(batch, length)*Mod(length, 4)", {"batch", "length"}, 18),
        ("FloorDiv(length, 2)", {"length"}, 5),
        ("ceiling(length)", {"length"}, None),
        ("Max(batch)", {"batch"}, None),
        ("unknown*2", {"unknown"}, None),
        ("batch//0", {"batch"}, None),
        ("batch % 0", {"batch"}, None),
    ],
)
def test_names_and_sizes(text: int | str | None, names: set[str], size: int | None) -> None:
    assert symbols_in(text) == names
    assert size_at(text, SIZES) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "unk__0 batch",
        "batch +",
        "(batch",
        "batch)",
        "batch[0]",
        "1.5*batch",
        "batch if b else 0",
        "__import__('os').system('x')",
        "lambda: batch",
        "batch := 3",
        "(" * 70 + "batch" + ")" * 70,
        "-" * 100 + "batch",
        "+".join(["batch"] * 200),
        "batch" + " " * 1000 + "+ 1",
        "9" * 30,
        "4294967296*4294967296",
        "2**9",
        "batch**-1",
        "10**8**8",
    ],
)
def test_what_has_no_size(text: str) -> None:
    assert size_at(text, SIZES) is None


def test_names_of_what_is_no_expression() -> None:
    assert symbols_in("batch ? b") == {"batch", "b"}
    assert symbols_in("batch[a.b]") == {"batch", "a.b"}


def test_a_known_text_is_a_name_whatever_it_looks_like() -> None:
    assert size_at("2*odd", {"2*odd": 9, "odd": 1}) == 9


def test_other_names() -> None:
    names = {"s1": "batch", "s11": "a.b"}
    assert rename("s1*(s11 + s2) - Max(1, s1)", names) == "batch*(a.b + s2) - Max(1, batch)"


@pytest.mark.parametrize("name", ["batch", "_x", "a.b", "größe", "b1"])
def test_names_of_dims(name: str) -> None:
    assert is_name(name)
    assert Dim.parse(f"{name}:1:9") == Dim(name, 1, 9)
    assert symbols_in(name) == {name}, "what a spec takes for one name is one everywhere"


@pytest.mark.parametrize("name", ["", "1b", ".a", "a b", "a-b", "a*b", "a\n"])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(InputError, match="identifier"):
        Dim(name)


NUMBERS = st.integers(0, 40).map(str)
NAMES = st.sampled_from(["batch", "length", "b"])
TREES = st.recursive(
    NUMBERS | NAMES,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        )
        | st.tuples(inner, st.sampled_from(["+", "*"]), inner).map(lambda t: f"{t[0]}{t[1]}{t[2]}")
        | st.tuples(st.sampled_from(["Max", "Min"]), inner, inner).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        )
        | inner.map(lambda text: f"-{text}")
    ),
    max_leaves=12,
)


@given(TREES)
def test_sizes_are_pythons(text: str) -> None:
    """The tests' own texts, evaluated by Python."""
    known = {"batch": 6, "length": 11, "b": 5}
    try:
        expected = eval(text, {"__builtins__": {}, "Max": max, "Min": min, **known})
    except ZeroDivisionError:
        expected = None
    if expected is not None and abs(expected) >= 2**40:
        return
    assert size_at(text, known) == expected
    assert symbols_in(text) <= known.keys()
    assert symbols_in(text) == {name for name in known if name in _words(text)}
    doubled = {name: operator.mul(2, size) for name, size in known.items()}
    assert size_at(rename(text, {"batch": "x"}), {**doubled, "x": 12}) == size_at(text, doubled)


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()


def test_an_expression_of_something_else() -> None:
    def told(text: str) -> str | None:
        return fold(text, str, lambda sign, parts: f"{sign}({', '.join(parts)})")

    assert told("2*n - 1") == "-(*(2, n), 1)"
    assert told("-Max(n, (m + 3)//4)") == "-(Max(n, //(+(m, 3), 4)))"
    assert told("n") == "n"
    assert told("n +") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("height", (1, "height")),
        ("8*height", (8, "height")),
        (" 16 * a.b ", (16, "a.b")),
        ("1*n", (1, "n")),
        ("0*n", None),
        ("-2*n", None),
        ("n*8", None),
        ("2*3*n", None),
        ("8*n + 1", None),
        ("8", None),
        ("", None),
        ("9999999999*n", None),
    ],
)
def test_multiples_of_one_dimension(text: str, found: tuple[int, str] | None) -> None:
    assert multiple_of(text) == found
