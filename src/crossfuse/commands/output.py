"""How a command prints: text for people, JSON for machines, progress of long work.

`crossfuse.commands.tables` and `crossfuse.commands.latency_table` say what is shown of a bundle and
of a measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from crossfuse.core.json_codec import json_text
from crossfuse.core.terminal import shown

__all__ = ["Output", "styled"]

_NARROWEST = 132
"""Columns of redirected output, which has no width of its own; tables of sites need this much."""


class _Console(Console):
    """The one way to a terminal. Every string is plain text, shown: no markup and no control
    character in it has an effect.

    What has a style is a `Text`, made by `styled`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for each string that is printed or stands in a table."""
        return super().render_str(
            shown(text), **options | {"markup": False, "emoji": False, "highlight": False}
        )

    def on_broken_pipe(self) -> None:
        """Raise the error again, in whose handling this is called: the caller knows what a closed
        pipe means."""
        raise


class Output:
    """One command's output: results go to stdout, progress and errors to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _Console()
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, _NARROWEST)
        self.errors = _Console(stderr=True)

    def result(self, data: Any, render: Callable[[], None]) -> None:
        """Print a result: ``data`` as JSON, or what ``render`` prints."""
        if self.as_json:
            sys.stdout.write(json_text(data, indent=1) + "\n")
        else:
            render()
        sys.stdout.flush()

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A function that shows what a long command is doing; a spinner on terminals, lines
        elsewhere, nothing for JSON."""
        if self.as_json:
            yield lambda _: None
        elif self.errors.is_terminal:
            spinner = "dots" if self.errors.encoding.startswith("utf") else "line"
            with self.errors.status("starting", spinner=spinner) as status:
                yield lambda text: status.update(styled(text))
        else:
            yield lambda text: self.errors.print(f"· {text}")

    def error(self, paragraph: str) -> None:
        """An error in one paragraph, on stderr; with ``--json`` also there, beside the object on
        stdout."""
        self.errors.print(styled("error:", "bold red"), paragraph, soft_wrap=True)

    def warning(self, paragraph: str) -> None:
        """A warning in one paragraph, on stderr."""
        self.errors.print(styled("warning:", "bold yellow"), paragraph, soft_wrap=True)

    def piece(self, text: str) -> None:
        """A part of a text that goes on; its line ends are line ends."""
        for i, line in enumerate(text.split("\n")):
            self.console.print(*[""] * (i > 0), end="\n" if i else "")
            self.console.print(line, end="", soft_wrap=True)
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """A line of text."""
        self.console.print(text, soft_wrap=True)

    def heading(self, *parts: str | Text) -> None:
        """A line above a table; a table's own title would wrap to the table's width."""
        line = Text(style="bold")
        for part in parts:
            line.append_text(part if isinstance(part, Text) else styled(part))
        self.console.print(line, soft_wrap=True)


def styled(text: str, style: str = "") -> Text:
    """Text with a style, shown as all other."""
    return Text(shown(text), style=style)
