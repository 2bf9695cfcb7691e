"""What a relation between sizes asks for: written without what multiplies both of its sides, and
the numbers of which dimensions have to be multiples.

Where a view divides a length by 8, the tracer compares numbers of elements: ``32·b·n == 256·b·(n //
8)``. What that says is that n is a multiple of 8.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["holding", "holds", "multiples", "numbers", "of_a_remainder", "reduced"]

_OTHERS = (1, 2, 3, 5, 7)
"""Sizes that the other dimensions have while one is tried."""

_MOST = 4096


def holds(relation: Any, sizes: Mapping[Any, int]) -> bool:
    """The relation is true at these sizes of its symbols; false, too, where it is not defined."""
    import sympy  # type: ignore[import-untyped]

    try:
        return bool(relation.xreplace({s: sympy.Integer(n) for s, n in sizes.items()}))
    except (TypeError, ZeroDivisionError):
        return False


def holding(relation: Any, points: Sequence[Mapping[Any, int]]) -> list[bool]:
    """At which of these points, which all have the same symbols, the relation `holds`.

    All are computed at once, part by part of the relation, in whole numbers of any length.
    """
    if not points:
        return []
    columns = {
        symbol: np.array([point[symbol] for point in points], dtype=object) for symbol in points[0]
    }
    try:
        found = _values(relation, columns)
    except (KeyError, TypeError, ZeroDivisionError):
        # An operator or number that is not known here, or a point where nothing is defined.
        return [holds(relation, point) for point in points]
    return [bool(truth) for truth in np.broadcast_to(found, len(points))]


def _values(expression: Any, known: dict[Any, Any]) -> Any:
    """Of an expression, at all points; parts that are known are not computed again."""
    if expression not in known:
        if expression.args:
            parts = [_values(part, known) for part in expression.args]
            known[expression] = functools.reduce(_operators()[expression.func], parts)
        elif expression.is_Boolean or expression.is_Integer:
            known[expression] = bool(expression) if expression.is_Boolean else int(expression)
    return known[expression]


@functools.cache
def _operators() -> Mapping[Any, Callable[[Any, Any], Any]]:
    """Operators of relations on arrays of whole numbers, by the classes of their expressions."""
    import sympy
    from torch.utils._sympy import functions as torch_functions

    remainders = (sympy.Mod, torch_functions.Mod, torch_functions.PythonMod)
    return {
        sympy.Add: operator.add,
        sympy.Mul: operator.mul,
        torch_functions.FloorDiv: operator.floordiv,
        **dict.fromkeys(remainders, operator.mod),
        **dict.fromkeys((sympy.Max, torch_functions.Max), np.maximum),
        **dict.fromkeys((sympy.Min, torch_functions.Min), np.minimum),
        sympy.Eq: operator.eq,
        sympy.Ne: operator.ne,
        sympy.Lt: operator.lt,
        sympy.Le: operator.le,
        sympy.Gt: operator.gt,
        sympy.Ge: operator.ge,
        sympy.And: np.logical_and,
        sympy.Or: np.logical_or,
    }


def numbers(relation: Any) -> set[int]:
    """Whole numbers that sizes are related to."""
    return {int(number) for number in relation.atoms() if number.is_Integer}


def multiples(relation: Any) -> dict[Any, int]:
    """The dimensions that have to be multiples of a number, whatever the others are: symbol →
    number. Where there are several, any of them will do."""
    symbols = sorted(relation.free_symbols, key=str)
    end = 4 * min(max({2, *numbers(relation)}), _MOST)
    found = {}
    for symbol in symbols:
        rest = [other for other in symbols if other is not symbol]
        points = [
            dict(zip(rest, others, strict=True))
            for others in itertools.product(_OTHERS, repeat=len(rest))
        ]
        sizes = range(1, end + 1)
        truths = holding(relation, [{symbol: n, **point} for n in sizes for point in points])
        several = len(points)
        right = [n for n in sizes if all(truths[(n - 1) * several : n * several])]
        unit = math.gcd(*right)
        if len(right) > 1 < unit and right == list(range(right[0], end + 1, unit)):
            found[symbol] = unit
    return found


def of_a_remainder(relation: Any) -> bool:
    """The relation is that a remainder is a number."""
    import sympy
    from torch.utils._sympy.functions import Mod, PythonMod

    return isinstance(relation, sympy.Eq) and bool(relation.has(Mod, PythonMod))


def reduced(relation: Any) -> Any:
    """An equation, or its opposite, without the numbers and sizes that multiply both of its sides,
    or both parts of its remainder: sizes are positive. An order of sizes stays as PyTorch asked."""
    import sympy
    from torch.utils._sympy.functions import Mod, PythonMod

    if isinstance(relation, sympy.And | sympy.Or):
        return relation.func(*map(reduced, relation.args))
    if not isinstance(relation, sympy.Eq | sympy.Ne):
        return relation
    left, right = relation.args
    if isinstance(left, Mod | PythonMod) and right == 0:
        left = left.func(*_without_shared(*left.args))
    else:
        left, right = _without_shared(left, right)
    shorter = relation.func(left, right)
    return relation if shorter in (sympy.true, sympy.false) else shorter


def _without_shared(left: Any, right: Any) -> tuple[Any, Any]:
    (first, ours), (second, theirs) = left.as_coeff_Mul(), right.as_coeff_Mul()
    if not (first.is_Integer and second.is_Integer and first and second):
        return left, right
    common = math.gcd(int(first), int(second))
    for size in set(ours.as_ordered_factors()) & set(theirs.as_ordered_factors()):
        if size.is_symbol:
            ours, theirs = ours / size, theirs / size
    return (first / common) * ours, (second / common) * theirs
