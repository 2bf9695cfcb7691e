"""Text for people, cut to what can be read: long messages, long lists."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["brief", "listed"]

_LONGEST = 400


def brief(text: object, limit: int = _LONGEST) -> str:
    """A text on one line, cut where it is long.

    `textwrap.shorten` drops words whole, so that of one long word (a path, a graph's name) nothing
    would be left; this cuts anywhere.
    """
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def listed(names: Sequence[str], most: int) -> str:
    """Names by commas: the first ones, and how many more there are."""
    more = f", … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
