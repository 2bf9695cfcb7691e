"""Text from files, models and strangers on a terminal: what would move, recolour or reorder it is
shown, not executed."""

from __future__ import annotations

import traceback

__all__ = ["shown", "shown_traceback"]


def shown(text: object) -> str:
    r"""The text with every character that is not printed by itself written out, as ``\x1b``, ``\n``
    or ``\u202e``.

    Those are control characters of both tables (escape sequences, line ends that forge lines),
    marks that reorder or hide text, separators other than the space, halves of surrogate pairs, and
    characters that aren't assigned. JSON needs none of this: it escapes them itself.
    """
    given = str(text)
    if given.isprintable():
        return given
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in given
    )


def shown_traceback(error: BaseException) -> str:
    """An error's traceback for a log: its lines, each shown, and indented, so that none looks like
    a record of its own."""
    lines = "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
    return "\n".join(f"  {shown(line)}" for line in lines)
