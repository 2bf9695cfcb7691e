"""The errors users meet: one paragraph saying what, where, got, expected, and what to do.

The command line maps :class:`InputError` to exit code 2 (wrong usage or bad input) and
:class:`CheckError` to exit code 1 (a check that ran and failed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

__all__ = [
    "Advice",
    "BundleError",
    "CheckError",
    "CrossfuseError",
    "Door",
    "EngineError",
    "FusionError",
    "InputError",
    "InternalError",
    "InterruptedCommandError",
    "PackageError",
    "ParityError",
    "QuantizationError",
    "Said",
    "UsageError",
    "suggestion",
    "unknown",
]


class Door(Enum):
    """How the user called, which decides what options and functions are called in advice."""

    COMMAND_LINE = "command line"
    PYTHON = "python"


@dataclass(frozen=True)
class Said:
    """One thing that is named differently by each door: a flag and an argument, a command and a
    function."""

    command_line: str
    python: str

    def at(self, door: Door) -> str:
        """As that door says it."""
        return self.command_line if door is Door.COMMAND_LINE else self.python


class Advice:
    """A text with things that each door names its own way.

    Args:
        text: with ``{}`` where the things go.
        things: one for each ``{}``.
    """

    def __init__(self, text: str, *things: Said | Advice | str) -> None:
        self.text = text
        self.things = things

    def at(self, door: Door) -> str:
        """The text for that door."""
        return self.text.format(*(_at(thing, door) for thing in self.things))

    def __str__(self) -> str:
        return self.at(Door.PYTHON)


def _at(value: object, door: Door) -> str:
    return value.at(door) if isinstance(value, Said | Advice) else str(value)


class CrossfuseError(Exception):
    """Base of every error that crossfuse raises on purpose.

    Each field may be text (or anything with a text), or an `Advice` or `Said`, which the door it
    leaves by words its own way: ``str(error)`` speaks of arguments and functions, the command line
    of flags and commands.

    Args:
        what: what went wrong, one clause.
        where: the file, input, site or option concerned.
        got: the value that was found.
        expected: the value that was expected.
        do: what the user can do about it.
    """

    exit_code = 2
    kind = "error"
    """What ``--json`` calls errors of this class."""

    def __init__(
        self,
        what: str | Advice,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | Advice | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.do = do
        super().__init__(self.paragraph(Door.PYTHON))

    def __str__(self) -> str:
        return self.paragraph(Door.PYTHON)

    def paragraph(self, door: Door) -> str:
        """The error in one paragraph, as the door words it."""
        fields = self.fields(door)
        text = (fields["what"] or "").rstrip(".")
        where, got, expected, do = (fields[name] for name in ("where", "got", "expected", "do"))
        if where is not None:
            text += f" ({where})"
        if got is not None and expected is not None:
            text += f": got {got}, expected {expected}"
        elif got is not None:
            text += f": got {got}"
        elif expected is not None:
            text += f": expected {expected}"
        text += "."
        if do:
            text += f" {do}" if do.endswith(("?", "!")) else f" {do.rstrip('.')}."
        return " ".join(text.split())

    def fields(self, door: Door) -> dict[str, str | None]:
        """``what``, ``where``, ``got``, ``expected`` and ``do`` as text, None where there is
        nothing to say."""
        values = {
            "what": self.what,
            "where": self.where,
            "got": self.got,
            "expected": self.expected,
            "do": self.do,
        }
        return {name: None if value is None else _at(value, door) for name, value in values.items()}

    def to_json(self, door: Door = Door.COMMAND_LINE) -> dict[str, Any]:
        """``kind`` and the fields, as ``--json`` prints them under ``error``."""
        return {"kind": self.kind, **self.fields(door)}


class InputError(CrossfuseError):
    """Wrong usage or bad input: a name, dtype, shape, option, file or source that can't be used."""

    kind = "input"


class UsageError(InputError):
    """A command line that can't be parsed."""

    kind = "usage"


class PackageError(InputError):
    """A package that is needed here is not installed."""

    kind = "package"


class BundleError(InputError):
    """A bundle that can't be trusted or used here: damaged, newer, unsafe, or for an absent
    engine."""

    kind = "bundle"


class InternalError(CrossfuseError):
    """An exception that crossfuse did not foresee; the cause is kept in ``__cause__``."""

    kind = "internal"


class InterruptedCommandError(CrossfuseError):
    """The user interrupted a command."""

    exit_code = 130
    kind = "interrupted"


class CheckError(CrossfuseError):
    """A check that ran and failed."""

    exit_code = 1
    kind = "check"


class FusionError(CheckError):
    """At least one attention of the model did not become a fused operator."""

    kind = "fusion"


class EngineError(CheckError):
    """An engine builder refused a graph or crashed, or an engine failed while it was executed (no
    memory, an error of CUDA)."""

    kind = "engine"


class QuantizationError(CheckError):
    """At least one linear layer that was to be quantised computes in floats all the same."""

    kind = "quantization"


class ParityError(CheckError):
    """A candidate's numbers leave the tolerance around the eager model's."""

    kind = "parity"


Made = TypeVar("Made", bound=CrossfuseError)


def suggestion(name: object, known: Iterable[str]) -> str | None:
    """``Did you mean 'clip'?`` for a name that is nearly a known one, else None."""
    candidates = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(str(name).casefold(), list(candidates), n=1, cutoff=0.6)
    return f"Did you mean {candidates[near[0]]!r}?" if near else None


def unknown(
    what: str,
    name: object,
    known: Iterable[str],
    *,
    where: object = None,
    expected: object = None,
    do: str | Advice | None = None,
    kind: type[Made] = InputError,  # type: ignore[assignment]  # a TypeVar's default is its own type
) -> Made:
    """An error about a name that isn't known: lists those that are, and suggests one that is nearly
    it.

    Args:
        what: what went wrong, one clause.
        name: that was given.
        known: names that would be right.
        where: as of the error.
        expected: instead of the list of known names.
        do: advice where no name is near.
        kind: class of the error.
    """
    names = list(known)
    return kind(
        what,
        where=where,
        got=repr(name),
        expected=expected or ", ".join(names) or "none",
        do=suggestion(name, names) or do,
    )
