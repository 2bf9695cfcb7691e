"""The one grammar of dimensions: names (``batch``, ``image.tokens``), numbers, and expressions such
as ``4*batch`` or ``(length - 1)//2 + 1``.

A name starts with a letter or ``_``; letters, digits, ``_`` and ``.`` follow: ``a.b`` is one name.
Expressions join them by ``+ - * / // % **``, signs, parentheses, and calls such as ``Max(1, n)``,
whose names are no dimensions. They come from files, so they are parsed and walked here, never
evaluated as code; what can't be parsed still has the names that stand in it.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["fold", "is_name", "multiple_of", "rename", "size_at", "symbols_in"]

_T = TypeVar("_T")

_NAME = r"[^\W\d][\w.]*"
_TOKEN = re.compile(rf"\s*(?:(?P<name>{_NAME})|(?P<number>[0-9]+)|(?P<sign>\*\*|//|[-+*/%(),]))")
_LONGEST = 1000
_DEEPEST = 60
_MOST_TOKENS = 300
_LARGEST = 2**63
_LARGEST_EXPONENT = 8


def _exactly(a: int, b: int) -> int:
    """A quotient that is whole."""
    if a % b:
        raise ValueError(f"{a}/{b} is not whole")
    return a // b


def _power(a: int, b: int) -> int:
    if not 0 <= b <= _LARGEST_EXPONENT:
        raise ValueError(f"exponent {b}")
    return int(a**b)


_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _exactly,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": _power,
}
_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "FloorDiv": operator.floordiv,
}
_LEVELS = (("+", "-"), ("*", "/", "//", "%"))
"""Operators by how tightly they bind, loosest first; signs and powers bind tighter."""


@dataclass(frozen=True)
class _Node:
    """A part of an expression: what joins its parts, or a number or a name without parts."""

    head: str | int
    parts: tuple[_Node, ...] = ()
    called: bool = False


def is_name(text: str) -> bool:
    """Whether a text is one dimension's name."""
    return re.fullmatch(_NAME, text) is not None


def multiple_of(text: str) -> tuple[int, str] | None:
    """Factor and name of ``8*height``, or 1 and the name of ``height``; None for any other text."""
    found = re.fullmatch(rf"(?:0*([1-9][0-9]{{0,8}})\s*\*\s*)?({_NAME})", text.strip())
    return None if found is None else (int(found[1] or 1), found[2])


def symbols_in(dim: int | str | None) -> frozenset[str]:
    """Names of dimensions in a size."""
    return _symbols_in(dim) if isinstance(dim, str) else frozenset()


def size_at(dim: int | str | None, sizes: Mapping[str, int]) -> int | None:
    """The size in numbers, or None where it holds something that is not known.

    Args:
        dim: a size, a name or an expression.
        sizes: of the named dimensions.
    """
    if isinstance(dim, int) or dim is None:
        return dim
    if dim in sizes:
        return sizes[dim]
    tree = _parsed(dim)
    try:
        return None if tree is None else _walk(tree, sizes)
    except (ValueError, ZeroDivisionError, KeyError):
        return None


def fold(
    dim: str, leaf: Callable[[int | str], _T], join: Callable[[str, Sequence[_T]], _T]
) -> _T | None:
    """What an expression is where its numbers, names and operators are something else.

    Args:
        dim: a name or an expression.
        leaf: of a number or a name.
        join: of an operator (``+ - * / // % **``), or the name of a call, and what it joins; a sign
            joins one.

    Returns:
        None where the text is no expression.
    """

    def of(tree: _Node) -> _T:
        if isinstance(tree.head, int) or not (tree.parts or tree.called):
            return leaf(tree.head)
        return join(tree.head, [of(part) for part in tree.parts])

    tree = _parsed(dim)
    return None if tree is None else of(tree)


def rename(dim: str, names: Mapping[str, str]) -> str:
    """A size with other names in place of its own, expressions included."""
    return re.sub(_NAME, lambda found: names.get(found[0], found[0]), dim)


@functools.lru_cache(maxsize=4096)
def _symbols_in(text: str) -> frozenset[str]:
    tree = _parsed(text)
    return frozenset(re.findall(_NAME, text)) if tree is None else frozenset(_names(tree))


def _names(tree: _Node) -> set[str]:
    own = (
        {tree.head} if isinstance(tree.head, str) and not tree.parts and not tree.called else set()
    )
    return own.union(*(_names(part) for part in tree.parts))


def _walk(tree: _Node, sizes: Mapping[str, int]) -> int:
    if isinstance(tree.head, int):
        return _sized(tree.head)
    if not tree.parts and not tree.called:
        return sizes[tree.head]
    values = [_walk(part, sizes) for part in tree.parts]
    if not tree.called and len(values) == 1:
        return -values[0]
    if len(values) != 2:
        raise ValueError(f"{tree.head} of {len(values)}")
    return _sized((_FUNCTIONS if tree.called else _OPERATORS)[tree.head](values[0], values[1]))


def _sized(number: int) -> int:
    if abs(number) >= _LARGEST:
        raise ValueError("no size is so large")
    return number


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> _Node | None:
    """The expression, or None where the text is none."""
    if len(text) > _LONGEST:
        return None
    tokens = _tokens(text)
    if tokens is None:
        return None
    try:
        return _Parser(tokens).whole()
    except ValueError:
        return None


def _tokens(text: str) -> list[str] | None:
    found, at, text = [], 0, text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        found.append(token[0].strip())
        at = token.end()
    return found if len(found) <= _MOST_TOKENS else None


class _Parser:
    """By recursive descent, so deep and no deeper.

    Raises:
        ValueError: no expression.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def whole(self) -> _Node:
        found = self.sum()
        if self.at < len(self.tokens):
            raise ValueError(self.tokens[self.at])
        return found

    def take(self, *wanted: str) -> str | None:
        """The next token, where it is one of these."""
        if self.at < len(self.tokens) and self.tokens[self.at] in wanted:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def need(self, wanted: str) -> None:
        if self.take(wanted) is None:
            raise ValueError(f"no {wanted}")

    def sum(self, level: int = 0) -> _Node:
        """Operators of a level, from left to right."""
        if level == len(_LEVELS):
            return self.signed()
        found = self.sum(level + 1)
        while sign := self.take(*_LEVELS[level]):
            found = _Node(sign, (found, self.sum(level + 1)))
        return found

    def signed(self) -> _Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("too deep")
        if self.take("-"):
            found = _Node("-", (self.signed(),))
        elif self.take("+"):
            found = self.signed()
        else:
            found = self.single()
            if self.take("**"):
                found = _Node("**", (found, self.signed()))
        self.depth -= 1
        return found

    def single(self) -> _Node:
        if self.take("("):
            found = self.sum()
            self.need(")")
            return found
        if self.at == len(self.tokens):
            raise ValueError("nothing")
        token = self.tokens[self.at]
        self.at += 1
        if token.isdigit():
            return _Node(int(token))
        if not is_name(token):
            raise ValueError(token)
        return _Node(token, self.arguments(), called=True) if self.take("(") else _Node(token)

    def arguments(self) -> tuple[_Node, ...]:
        if self.take(")"):
            return ()
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        self.need(")")
        return tuple(found)
