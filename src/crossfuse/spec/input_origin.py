"""Where a model's example inputs came from, which sizes could not be varied, and what of them no
result depends on: what a manifest says of it, and the words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["FIXED", "FROM", "UNREAD", "YOURS", "origin_about", "origin_words"]

FROM, FIXED = "inputs_from", "fixed_sizes"
"""Keys of what a bundle's manifest says about its source."""

UNREAD = "unread_inputs"
"""Such a key: inputs that no result depends on."""

YOURS = "yours"


def origin_about(source: str, fixed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the manifest says.

    Args:
        source: where the inputs came from, in words.
        fixed: dimensions that could not be varied → why.
    """
    return {FROM: source} | ({FIXED: dict(fixed)} if fixed else {})


def origin_words(about: Mapping[str, Any]) -> list[str]:
    """Lines for people; none where the manifest says nothing that can be read."""
    source, fixed = about.get(FROM), about.get(FIXED)
    lines = [f"Inputs from: {source}"] if isinstance(source, str) else []
    if isinstance(fixed, Mapping):
        lines += [f"  {name} can't vary: {why}" for name, why in fixed.items()]
    unread = about.get(UNREAD)
    if isinstance(unread, tuple | list):
        names = ", ".join(map(str, unread))
        lines.append(
            f"No result depends on {names}: the examples may lack what brings it in, such as an "
            "image's placeholders among the ids"
        )
    return lines
