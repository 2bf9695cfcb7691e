"""The errors users meet: one paragraph saying what, where, got, expected, and what to do.

The command line maps :class:`InputError` to exit code 2 (wrong usage or bad input) and
:class:`CheckError` to exit code 1 (a check that ran and failed).
"""

from __future__ import annotations

__all__ = ["BundleError", "CheckError", "CrossfuseError", "EngineError", "FusionError", "InputError", "ParityError"]


class CrossfuseError(Exception):
    """Base of every error that crossfuse raises on purpose.

    Args:
        what: what went wrong, one clause.
        where: the file, input, site or option concerned.
        got: the value that was found.
        expected: the value that was expected.
        do: what the user can do about it.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.do = do
        super().__init__(self._paragraph())

    def _paragraph(self) -> str:
        text = self.what.rstrip(".")
        if self.where is not None:
            text += f" ({self.where})"
        if self.got is not None and self.expected is not None:
            text += f": got {self.got}, expected {self.expected}"
        elif self.got is not None:
            text += f": got {self.got}"
        elif self.expected is not None:
            text += f": expected {self.expected}"
        text += "."
        if self.do:
            text += f" {self.do.rstrip('.')}."
        return text


class InputError(CrossfuseError):
    """Wrong usage or bad input: a name, dtype, shape, option, file or source that can't be used."""


class BundleError(InputError):
    """A bundle that can't be trusted or used here: damaged, newer, unsafe, or for an absent engine."""


class CheckError(CrossfuseError):
    """A check that ran and failed."""

    exit_code = 1


class FusionError(CheckError):
    """At least one attention of the model did not become a fused operator."""


class EngineError(CheckError):
    """An engine builder refused a graph or crashed, or an engine failed while it was executed (no memory, an error of CUDA)."""


class ParityError(CheckError):
    """A candidate's numbers leave the tolerance around the eager model's."""
