"""The `crossfuse` command's way in and out: whatever happens ends in an exit code, and in one
paragraph where it is an error.

Standard library only, so that it can say what to install where the packages of the command line are
missing.

Exit codes: 0 when all checks passed, 1 for a failed check, 2 for wrong usage, bad input or anything
else that kept the command from its end, 130 when interrupted, 141 when the reader of the output
went away. ``CROSSFUSE_DEBUG=1`` shows tracebacks.
"""

from __future__ import annotations

import atexit
import codecs
import errno
import io
import json
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from crossfuse.core.foreign import own
from crossfuse.errors import (
    CrossfuseError,
    Door,
    InputError,
    InterruptedCommandError,
    PackageError,
    UsageError,
    unknown,
)

__all__ = ["exit_code_of", "leave", "needs_packages", "require_room"]

_READER_GONE = 141
_FAILED = 2
_LAST_WORDS = (
    b"error: memory ran out, even for saying where (the process may be limited, `ulimit -v`). "
    b"Use smaller sizes, or a machine with more memory.\n"
)
"""Made before they are needed: nothing can be then."""
_ROOM = 128 << 20
"""Bytes that the command line takes, and NumPy with its linear algebra, on one thread."""
_SLOW_TO_END = ("ray",)
"""Packages whose native threads hold the end of a process up, for seconds."""
_INSTALL = (
    "pip install 'crossfuse[cpu]' where bundles run ('crossfuse[gpu]' on NVIDIA GPUs), "
    "'crossfuse[export,cpu]' where models are exported"
)
_CHOICE = re.compile(
    r"'(?P<where>-[^']*)': (Value error, )?'(?P<got>.*)' is not one of (?P<known>'.*')\.?$"
)
"""What the parser, in several of its versions, says of a value not in an option's closed set."""

_SPELLED = {
    "·": "-", "×": "x", "…": "...", "–": "-", "—": "-", "∞": "inf", "≤": "<=", "≥": ">=",
    "→": "->", "µ": "u", "±": "+-", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*",
}  # fmt: skip
"""How symbols are spelled where the terminal's encoding lacks them."""


def exit_code_of(command: Callable[[], int], arguments: Sequence[str]) -> int:
    """Run a command to its end, whatever that is; says its error where it has one.

    Args:
        command: gives an exit code, or raises.
        arguments: of the command line; ``--json`` among them asks for errors as objects.
    """
    try:
        return _told(command, arguments)
    except MemoryError:
        return _last_words()
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return _last_words()


def _told(command: Callable[[], int], arguments: Sequence[str]) -> int:
    _print_anywhere()
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _tell(InterruptedCommandError("interrupted"), arguments)
    except Exception as error:  # noqa: BLE001 -- the outermost door: everything becomes a paragraph and an exit code
        if isinstance(error, BrokenPipeError) and _reader_gone():
            with _whatever_output():
                pass
            return _READER_GONE
        return _tell(_ours(error), arguments)
    return code


def _last_words() -> int:
    """What needs no memory."""
    with suppress(Exception):
        os.write(2, _LAST_WORDS)
    return _FAILED


def require_room() -> None:
    """Refuse to begin with less memory than loading NumPy takes. Its native code would end the
    process, with an exit code that says something else.

    Raises:
        InputError: the process may not take that much.
    """
    if not _has_room():
        raise InputError(
            "memory ran out before the work began",
            where="this process may be limited, `ulimit -v`",
            expected=f"at least {_ROOM >> 20} MB",
            do="Raise the limit, or use a machine with more memory",
        )


def _has_room() -> bool:
    if sys.platform == "win32":
        return True
    import mmap

    try:
        mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        return error.errno != errno.ENOMEM
    return True


@contextmanager
def needs_packages(*names: str) -> Iterator[None]:
    """Around imports of the command line's own packages: says what to install where they are
    missing.

    Raises:
        PackageError: one of the named packages can't be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in names:
            raise
        raise PackageError(
            f"the command line needs a package that can't be imported: {error}", do=_INSTALL
        ) from error


def _ours(error: Exception) -> CrossfuseError:
    """The error to tell. Errors of the parser are known by what they can do: its package differs
    between typer's versions."""
    show, message = getattr(error, "show", None), getattr(error, "format_message", None)
    if show is None or message is None:
        return own(error)
    context: Any = getattr(error, "ctx", None)
    path = "crossfuse" if context is None else context.command_path
    if type(error).__name__ == "NoArgsIsHelpError":
        return UsageError("no command is given", do=f"`{path} --help` lists them")
    text = " ".join(message().split())
    if (choice := _CHOICE.search(text)) is not None:
        name = (getattr(getattr(error, "param", None), "name", None) or "value").replace("_", " ")
        known = re.findall(r"'([^']*)'", choice["known"])
        return unknown(f"unknown {name}", choice["got"], known, where=choice["where"])
    return _usage_error(text, path, getattr(error, "possibilities", None) or ())


def _usage_error(message: str, path: str, possible: Sequence[str]) -> UsageError:
    """A command line that can't be parsed, with advice."""
    text, _, near = message.partition(" Did you mean ")
    text = re.sub(r" \(Possible options: .*\)$", "", text)
    meant = near.rstrip(".?") if near else " or ".join(repr(name) for name in possible)
    do = f"Did you mean {meant}?" if meant else f"`{path} --help` says what it takes"
    return UsageError(text[:1].lower() + text[1:], do=do)


def _tell(error: CrossfuseError, arguments: Sequence[str]) -> int:
    """Say the error on stderr, and with ``--json`` on stdout as an object; give the exit code."""
    with _whatever_output():
        if os.environ.get("CROSSFUSE_DEBUG") == "1":
            traceback.print_exception(error)
    if "--json" in arguments:
        with _whatever_output():
            sys.stdout.write(json.dumps({"error": error.to_json()}, indent=1) + "\n")
    with _whatever_output():
        _on_stderr(error.paragraph(Door.COMMAND_LINE))
    return error.exit_code


def _on_stderr(paragraph: str) -> None:
    try:
        if _has_room():  # it loads NumPy
            from crossfuse.commands.output import Output

            Output(as_json=False).error(paragraph)
            return
    except (ImportError, MemoryError):
        pass
    sys.stderr.write(f"error: {paragraph}\n")
    sys.stderr.flush()


@contextmanager
def _whatever_output() -> Iterator[None]:
    """What can't be written is thrown away, so that nothing fails at the process's end."""
    with suppress(OSError):
        yield
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)


def _reader_gone() -> bool:
    """Whether nobody reads standard output any more."""
    try:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)
        return bool(waiting.poll(0))
    except (OSError, ValueError, AttributeError):  # no file behind it, or a system without poll
        return False


def _print_anywhere() -> None:
    """What the terminal's encoding lacks is spelled out instead of being an error."""
    codecs.register_error("crossfuse.spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="crossfuse.spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(
        _SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text
    ), error.end


def leave(code: int) -> None:
    """End the process here, all its work done, where a package that was used would hold its end up;
    otherwise nothing happens."""
    if not any(name in sys.modules for name in _SLOW_TO_END):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
