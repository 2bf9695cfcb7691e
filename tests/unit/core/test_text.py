"""Text is cut where it is long, never to nothing."""

from __future__ import annotations

import textwrap

from crossfuse.core.text import brief, listed


def test_one_line() -> None:
    assert brief("a\n  b\tc ") == "a b c"
    assert brief(ValueError("x\ny")) == "x y"


def test_cut_at_the_limit() -> None:
    words = "word " * 200
    assert len(brief(words)) == 400
    assert brief(words).endswith("…")
    assert brief("x" * 400) == "x" * 400
    assert brief("abcdef", 4) == "abc…"


def test_one_long_word_is_cut_too() -> None:
    """Where `textwrap.shorten` leaves nothing."""
    assert textwrap.shorten("/long" * 100, 50, placeholder="…") == "…"
    assert brief("/long" * 100, 50) == ("/long" * 100)[:49] + "…"


def test_lists() -> None:
    assert listed([], 2) == ""
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b, … and 2 more"
