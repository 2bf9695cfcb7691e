"""Which module of a package uses which other, read from the source.

An arrow is an import (at module level, or inside a function) or a text in the code that names a
module, as ``"-m", "crossfuse.targets.tensorrt.worker"`` does. Docstrings name modules, too, and
imports under ``TYPE_CHECKING`` never run: neither is an arrow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Arrow", "arrows", "circles", "imported", "module_files", "named_in_texts"]


@dataclass(frozen=True)
class Arrow:
    """One module uses another: dotted names, and how (``import``, ``lazy import`` or ``text``)."""

    source: str
    target: str
    how: str


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name → file of every module and package below a package's folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(root: Path) -> list[Arrow]:
    """All arrows between the modules of a package."""
    files = module_files(root)
    # A package's name alone may be that of a group of entry points, or of a folder with data.
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    found = []
    for source, path in files.items():
        tree = ast.parse(path.read_text())
        first = {_longest(name, files) for name in imported(tree, module_level=True)}
        every = {_longest(name, files) for name in imported(tree)}
        texts = {_longest(name, files) for name in named_in_texts(tree, root.name)} - packages
        for targets, how in (
            (first, "import"),
            (every - first, "lazy import"),
            (texts - every, "text"),
        ):
            found += [
                Arrow(source, target, how)
                for target in sorted(targets - {None, source}, key=str)
                if target is not None
            ]
    return found


def imported(tree: ast.AST, *, module_level: bool = False) -> set[str]:
    """Dotted names that a file imports: ``a.b`` for ``from a import b``.

    The version, which the package's root holds, is none.
    """
    found: set[str] = set()
    for node in _code(tree, module_level):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if not name.endswith(".__version__")}


def named_in_texts(tree: ast.AST, package: str) -> set[str]:
    """Dotted names in the texts of a file.

    A text counts that is a module's name alone, or has one in code: after ``import``, ``from``
    or ``-m``.
    """
    dotted = rf"{package}(?:\.[a-z_]\w*)+"
    found: set[str] = set()
    docstrings = _docstrings(tree)
    for node in _code(tree, module_level=False):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in docstrings:
            continue
        if re.fullmatch(dotted, node.value):
            found.add(node.value)
        found.update(re.findall(rf"(?:\bimport|\bfrom|-m) ({dotted})", node.value))
    return found


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of names that reach each other (strongly connected, of more than one name), sorted."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        if a != b:
            after.setdefault(a, set()).add(b)
            after.setdefault(b, set())
    reach = {name: _reached(name, after) for name in after}
    groups = {tuple(sorted(b for b in after if b in reach[a] and a in reach[b])) for a in after}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reached(name: str, after: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        for other in after[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


def _longest(name: str, known: Mapping[str, Path]) -> str | None:
    """The longest part of a dotted name, from its start, that is a module."""
    parts = name.split(".")
    candidates = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((one for one in candidates if one in known), None)


def _code(tree: ast.AST, module_level: bool) -> Iterator[ast.AST]:
    """The nodes that run: none under ``TYPE_CHECKING``, and at module level none of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        yield from _code(node, module_level)


def _docstrings(tree: ast.AST) -> set[int]:
    """Texts that stand alone as a statement."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
