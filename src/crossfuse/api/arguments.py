"""What the public functions' arguments have in common: several texts, files, a function that is
told what begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

from crossfuse.errors import InputError

__all__ = ["Examples", "Progress", "paths", "several", "silent"]

Progress = Callable[[str], None]
"""Told what begins, in a few words."""

Examples = str | Path | Iterable[str | Path] | None
"""NPZ files of real inputs."""


def silent(text: str) -> None:
    """A progress that nobody follows."""


def several(argument: str, values: Iterable[str]) -> tuple[str, ...]:
    """Several texts as they were given.

    Raises:
        InputError: one text alone, whose letters would be taken for several.
    """
    if isinstance(values, str):
        raise InputError(
            "an argument takes several texts",
            where=argument,
            got=repr(values),
            expected=f"[{values!r}]",
        )
    return tuple(values)


def paths(argument: str, files: Examples) -> tuple[Path, ...]:
    """One file, or several, or none, as paths.

    Raises:
        InputError: something else than paths, such as the arrays themselves.
    """
    if files is None:
        return ()
    if isinstance(files, str | PathLike):
        return (Path(files),)
    given: list[object] = [files]
    if isinstance(files, Iterable) and not isinstance(files, Mapping):
        given = list(files)
    found: list[Path] = []
    for file in given:
        if not isinstance(file, str | PathLike):
            raise InputError(
                "files are given by their paths",
                where=argument,
                got=type(file).__name__,
                do="Write arrays to a file with numpy.savez, and give its path",
            )
        found.append(Path(file))
    return tuple(found)
