"""Exceptions of others: of the user's code, of libraries, of the system. Each becomes one paragraph
with the true cause.

`blaming` stands around a call into code that isn't ours and says whose it is; `door` stands around
the functions that users call, so that whatever passed the rest arrives as a :class:`CrossfuseError`
with its cause in ``__cause__``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TypeVar

from crossfuse.core.os_errors import cause_in_memory, help_for
from crossfuse.core.requirements import extra_of, install
from crossfuse.core.text import brief
from crossfuse.errors import Advice, CrossfuseError, InputError, InternalError, PackageError, Said

__all__ = ["blaming", "cause_of", "door", "is_users", "own", "place_here", "place_of"]

_ROOT = Path(__file__).parents[1]

Given = ParamSpec("Given")
Result = TypeVar("Result")


def cause_of(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"SystemExit: it ended the process with {error.code!r}"
    if isinstance(error, RecursionError):
        return f"{name}: it calls itself without end"
    try:
        text = brief(error)
    except Exception:  # noqa: BLE001 -- a user's exception may fail to describe itself, in any way
        text = ""
    return f"{name}: {text}" if text else name


def place_of(error: BaseException) -> str | None:
    """File and line of the innermost frame in the user's own code: no library's, and not
    crossfuse's; None without one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    import traceback

    found = None
    for frame in traceback.extract_tb(error.__traceback__, limit=-200):
        if is_users(frame.filename):
            found = f"{frame.filename}, line {frame.lineno}"
    return found


def place_here() -> str | None:
    """File and line of the innermost running frame in the user's own code; None without one."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}, line {frame.f_lineno}"
        frame = frame.f_back
    return None


@functools.cache
def is_users(filename: str) -> bool:
    """A file of the user's own code: no library's, and not crossfuse's."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return (
        not any(path.is_relative_to(folder) for folder in (_ROOT, *_folders_of_others()))
        and path.is_file()
    )


@functools.cache
def _folders_of_others() -> tuple[Path, ...]:
    """Where the standard library and installed packages are."""
    import sysconfig

    return tuple(
        {
            Path(sysconfig.get_path(name)).resolve()
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        }
    )


@contextmanager
def blaming(
    what: str,
    *,
    where: object = None,
    do: str | Advice | None = None,
    kind: type[CrossfuseError] = InputError,
) -> Iterator[None]:
    """Around a call into the user's code or a library: its exceptions become ours, with the cause
    and the user's line.

    Errors of crossfuse pass, with the user's line where they were raised below it; interrupts pass
    as they are.

    Args:
        what: which of them failed, as "the factory raised".
        where: what was asked of it; the user's file and line, where the exception came from there,
            follow.
        do: advice.
        kind: class of the error.
    """
    try:
        yield
    except CrossfuseError as error:
        place = place_of(error)
        if place is not None and place not in str(error.where):
            error.where = _places(error.where, place)
        raise
    except (Exception, SystemExit) as error:
        raise kind(
            f"{what} {cause_of(error)}", where=_places(where, place_of(error)), do=do
        ) from error


def _places(where: object, place: str | None) -> object:
    if place is None:
        return where
    return place if where is None or place.startswith(f"{where}, line ") else f"{where}; {place}"


def own(error: BaseException) -> CrossfuseError:
    """The error that an exception is to the user, wherever it came from; one of ours is itself."""
    if isinstance(error, CrossfuseError):
        return error
    if not isinstance(error, OSError) and (lacking := cause_in_memory(error)) is not None:
        return InputError(
            f"memory ran out ({cause_of(lacking)})",
            do="Use smaller sizes, or a machine with more memory",
        )
    if isinstance(error, ImportError) and (extra := extra_of(error.name)):
        return PackageError(
            f"a package that is needed here can't be imported: {brief(error)}",
            do=f"Install it: {install(extra)}",
        )
    if isinstance(error, OSError) and (error.strerror or error.filename):
        return InputError(
            error.strerror or cause_of(error), where=error.filename, do=help_for(error)
        )
    return InternalError(
        f"something failed that crossfuse did not foresee: {cause_of(error)}",
        where=place_of(error),
        do=Advice(
            "{} shows where; please report it",
            Said("CROSSFUSE_DEBUG=1 in the environment", "The error's __cause__"),
        ),
    )


def door(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """For functions that users call: what they raise is a :class:`CrossfuseError`, but for the
    TypeError of a wrong call."""

    @functools.wraps(function)
    def entered(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except CrossfuseError:
            raise
        except Exception as error:
            frames = error.__traceback__
            if isinstance(error, TypeError) and frames is not None and frames.tb_next is None:
                raise  # the call itself was wrong: an argument too many, or one missing
            raise own(error) from error

    return entered
