"""Sizes of graphs' dimensions in numbers: expressions such as ``4*batch`` or ``(length - 1)//2 +
1`` at given sizes.

Expressions come from files, so they are parsed and walked, never evaluated as code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

__all__ = ["size_at", "symbols_in"]

_OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LONGEST = 1000


def symbols_in(dim: int | str | None) -> frozenset[str]:
    """Names in a dimension."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", dim)) if isinstance(dim, str) else frozenset()


def size_at(dim: int | str | None, sizes: Mapping[str, int]) -> int | None:
    """The dimension in numbers, or None where it holds something that is not known."""
    if isinstance(dim, int) or dim is None:
        return dim
    if dim in sizes:
        return sizes[dim]
    try:
        return _walk(ast.parse(dim[:_LONGEST], mode="eval").body, sizes)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, KeyError):
        return None


def _walk(node: ast.AST, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_walk(node.left, sizes), _walk(node.right, sizes))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_walk(node.operand, sizes)
    raise ValueError(ast.dump(node)[:80])
