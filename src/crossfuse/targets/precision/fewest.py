"""The fewest parts of a graph that have to stay in fp32, found in few trials.

Parts are ranked by the error that they add. A growing share of them is kept until parity holds, and
then the smallest number that still does is looked for, halving.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["MAX_TRIALS", "AddedError", "Progress", "Trials", "fewest", "with_added"]

_log = logging.getLogger(__name__)

MAX_TRIALS = 12
"""The most candidates that a search evaluates."""

_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_REFINEMENTS = 4

Progress = Callable[[str], None]
"""Told what is tried."""


class AddedError(NamedTuple):
    """A node, and how much its results err beyond what it is given, relative to their size."""

    node: str
    error: float


@dataclass
class Trials:
    """Candidates tried, counted and told.

    Attributes:
        passes: whether parity holds with these nodes kept (→ why).
        progress: told what is tried.
        precision: whose search it is.
        kept: what stays, in words.
        count: trials so far.
    """

    passes: Callable[[Mapping[str, str]], bool]
    progress: Progress
    precision: str
    kept: str
    count: int = 0

    def holds(self, keep: Mapping[str, str]) -> bool:
        """Whether parity holds with these nodes kept."""
        self.count += 1
        self.progress(
            f"{self.precision}: trial {self.count} of at most {MAX_TRIALS}: {len(keep)} {self.kept}"
        )
        held = self.passes(keep)
        _log.debug("parity %s with %d kept", "holds" if held else "fails", len(keep))
        return held


def fewest(trials: Trials, keep: Mapping[str, str], ranked: Sequence[AddedError]) -> int | None:
    """How many of the ranked nodes parity needs: a share that passes, then made smaller; None where
    all of them are not enough.

    Args:
        trials: asked about candidates.
        keep: nodes that are kept besides.
        ranked: by the error that they add, the largest first.
    """
    too_few, enough = 0, 0
    for share in _SHARES:
        count = max(1, round(share * len(ranked)))
        if count == too_few:
            continue
        if trials.holds(with_added(keep, ranked[:count])):
            enough = count
            break
        too_few = count
    if not enough:
        return None
    for _ in range(_REFINEMENTS):
        middle = (too_few + enough) // 2
        if middle <= too_few:
            break
        if trials.holds(with_added(keep, ranked[:middle])):
            enough = middle
        else:
            too_few = middle
    return enough


def with_added(keep: Mapping[str, str], more: Sequence[AddedError]) -> dict[str, str]:
    """The nodes kept, with reasons, and more for the error that they add."""
    reasons = {name: f"it adds a relative error of {error:.2g}" for name, error in more}
    return {**keep, **reasons}
