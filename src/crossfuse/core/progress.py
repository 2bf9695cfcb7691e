"""How long work tells what it does: a function that is called with one line of text at a time."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str], None]
"""Told what begins, in a few words: "eager reference 3/9: batch=2"."""


def silent(text: str) -> None:
    """Progress that nobody wants to hear of."""
