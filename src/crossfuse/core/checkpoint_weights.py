"""What a checkpoint lacks and what it has too much, by name: before a random weight passes for a
trained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossfuse.core.text import listed
from crossfuse.errors import Advice, InputError, Said

__all__ = ["LEFT_OVER", "MISSING", "require_weights", "weights_about", "weights_words"]

MISSING, LEFT_OVER = "missing_weights", "left_over_weights"
"""Keys of what a bundle's manifest says about its source."""

_MOST = 5

Shape = tuple[int, ...]


def require_weights(
    where: object,
    what: str,
    missing: Sequence[str],
    other_shapes: Mapping[str, tuple[Shape, Shape]],
    left_over: Sequence[str],
    *,
    allow_missing: bool,
) -> None:
    """Refuse a checkpoint that does not hold all weights of the model.

    Args:
        where: the checkpoint.
        what: the error's first clause.
        missing: the model's names of weights that are not there.
        other_shapes: name → the checkpoint's shape and the model's.
        left_over: the checkpoint's names that the model has no place for; on their own no error,
            but they tell of renaming.
        allow_missing: let it pass.

    Raises:
        InputError: naming the weights.
    """
    if allow_missing or not (missing or other_shapes):
        return
    shapes = [
        f"{name} {list(got)} for {list(wanted)}" for name, (got, wanted) in other_shapes.items()
    ]
    parts = (
        ("missing", missing),
        ("in another shape", shapes),
        ("that the model doesn't know", left_over),
    )
    raise InputError(
        f"{what}: weights that it lacks would be random",
        where=where,
        got="; ".join(
            f"{len(names)} {kind} ({listed(names, _MOST)})" for kind, names in parts if names
        ),
        do=Advice(
            "Name the class that the checkpoint was saved from ({}), load one that is complete, or "
            "let these weights be random "
            "on purpose: {}",
            Said("--task, or --checkpoint of another model", "task=..., or another checkpoint"),
            Said("--allow-missing", "allow_missing=True"),
        ),
    )


def weights_about(missing: Sequence[str], left_over: Sequence[str]) -> dict[str, Any]:
    """For the manifest: which weights are random, and which tensors were left over; empty where
    there are none."""
    return {
        key: sorted(names) for key, names in ((MISSING, missing), (LEFT_OVER, left_over)) if names
    }


def weights_words(about: Mapping[str, Any]) -> list[str]:
    """The same as warnings."""
    words = (
        (MISSING, "weights are random, as the checkpoint lacks them"),
        (LEFT_OVER, "tensors of the checkpoint are not used"),
    )
    found = {
        key: [str(name) for name in about[key]]
        for key, _ in words
        if isinstance(about.get(key), list)
    }
    return [
        f"{len(found[key])} {text}: {listed(found[key], _MOST)}"
        for key, text in words
        if found.get(key)
    ]
