"""When each token was said: some heads of the decoder's attention to the sound look at where the
next token is heard, and the cheapest way through their scores that never goes back says when.

Scores ``p`` are ``[heads, tokens, places]``. Each place of a head is made comparable with the
others, ``(p - mean) / deviation`` over the tokens, and smoothed over time by a median; the heads'
mean is how well a token fits a place. A way through tokens and places begins at both first ones and
ends at both last ones, with steps to the next token, the next place or both. With the costs
``c = -fit``, the cheapest way to ``(i, j)`` costs ``d[i, j] = c[i, j] + min(d[i-1, j-1], d[i-1, j],
d[i, j-1])``. A token is said where the cheapest way comes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.tensors import ALIGNMENT_OUTPUTS, MEDIAN_WIDTH, names_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.context import Context
from crossfuse.runtime.session import Session
from crossfuse.runtime.speech.segments import FRAMES_PER_TIME

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Alignment", "cheapest_way", "fit"]

_WIDTH = 7
"""Places that are smoothed over, where the bundle's settings don't say."""

_KEEP = Said("--keep-probabilities alignment_heads", "keep_probabilities=['alignment_heads']")


@dataclass(frozen=True)
class Alignment:
    """Which scores say when tokens were said.

    Attributes:
        heads: outputs of the step stage ``[batch, tokens, heads, places]``, and which of their
            heads.
        width: places that are smoothed over.
    """

    heads: tuple[tuple[str, int], ...]
    width: int = _WIDTH

    @classmethod
    def of(cls, session: Session) -> Alignment:
        """As the bundle's settings say.

        Raises:
            InputError: a bundle that keeps no such scores, or settings that are wrong.
        """
        given = session.generation.get(ALIGNMENT_OUTPUTS)
        made = names_of(session.stages["step"].outputs)
        if not given:
            raise InputError(
                "the bundle keeps no attention scores to tell the times of words by",
                do=Advice("Export the checkpoint again with {}", _KEEP),
            )
        if not isinstance(given, list | tuple) or not all(_is_place(one, made) for one in given):
            raise InputError(
                "the bundle's settings name no outputs and heads of them",
                where=ALIGNMENT_OUTPUTS,
                got=given,
                expected=f"pairs of one of {', '.join(made)} and a number",
            )
        width = session.generation.get(MEDIAN_WIDTH, _WIDTH)
        if not isinstance(width, int) or width < 1 or width % 2 == 0:
            raise InputError(
                "scores are smoothed over an odd number of places", where=MEDIAN_WIDTH, got=width
            )
        return cls(tuple((str(name), int(head)) for name, head in given), width)

    def places(
        self,
        session: Session,
        context: Context,
        prompt: Sequence[int],
        tokens: NDArray[np.int64],
        frames: int,
    ) -> NDArray[np.int64]:
        """The place in the sound at which each token ends, counted in times of the model.

        Scores of a token are those from which the next one is chosen. So the last one, mostly the
        end, has none, and is said to end where the one before it does.

        Args:
            session: of the bundle.
            context: the window.
            prompt: the tokens in front.
            tokens: ``[tokens]``: of the window, the end included.
            frames: of the features, as far as the sound goes.
        """
        fed, length = tokens[:-1], max(frames, 0) // FRAMES_PER_TIME
        if not len(fed) or not length:
            return np.zeros(len(tokens), np.int64)
        made = session.start(context, prompt=[[*prompt, *fed.tolist()]]).outputs
        scores = np.stack([_of_head(made, *head)[-len(fed) :, :length] for head in self.heads])
        found = cheapest_way(-fit(scores, self.width))
        return np.append(found, found[-1])


def fit(scores: NDArray[Any], width: int) -> NDArray[np.float64]:
    """How well each token fits each place, ``[tokens, places]``.

    Args:
        scores: ``[heads, tokens, places]``.
        width: places that are smoothed over.
    """
    found = np.zeros(scores.shape[1:], np.float64)
    for head in scores.astype(np.float64):
        deviation = head.std(0)
        # Where all tokens score alike, the place tells none of them from the others.
        told = np.divide(head - head.mean(0), deviation, out=np.zeros_like(head),
                         where=deviation > 0)  # fmt: skip
        found += _smoothed(told, width)
    return found / len(scores)


def cheapest_way(costs: NDArray[Any]) -> NDArray[np.int64]:
    """The place at which the cheapest way comes to each token, ``[tokens]``.

    Args:
        costs: ``[tokens, places]``.
    """
    tokens, places = costs.shape
    whole = np.full((tokens + 1, places + 1), np.inf)
    whole[0, 0] = 0
    for row in range(tokens):
        above = np.minimum(whole[row, :-1], whole[row, 1:])
        # A way that comes into the row at place k goes on along it: with s the sums of the row's
        # costs, to j it costs above[k] - s[k-1] + s[j].
        sums = np.cumsum(costs[row], dtype=np.float64)
        before = np.append(0.0, sums[:-1])
        whole[row + 1, 1:] = sums + np.minimum.accumulate(above - before)
    found = np.zeros(tokens, np.int64)
    row, place = tokens, places
    while row > 0:
        both, token, other = whole[row - 1, place - 1], whole[row - 1, place], whole[row, place - 1]
        found[row - 1] = place - 1
        if both < token and both < other:
            row, place = row - 1, place - 1
        elif token < both and token < other:
            row -= 1
        elif place > 1:
            place -= 1
        else:
            row -= 1
    return found


def _smoothed(scores: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The median over the places around each, mirrored at the ends."""
    side = width // 2
    if scores.shape[1] <= side:
        return scores
    padded = np.pad(scores, ((0, 0), (side, side)), mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
    middle: NDArray[np.float64] = np.partition(around, side, axis=-1)[..., side]
    return middle


def _of_head(made: Any, name: str, head: int) -> NDArray[np.float64]:
    scores = np.asarray(made[name], np.float64)
    if scores.ndim != 4 or head >= scores.shape[2]:
        raise InputError(
            "an output holds no scores of this head",
            where=name,
            got=f"{list(scores.shape)}, head {head}",
            expected="[batch, tokens, heads, places]",
        )
    found: NDArray[np.float64] = scores[0, :, head]
    return found


def _is_place(given: object, names: Sequence[str]) -> bool:
    return (
        isinstance(given, list | tuple)
        and len(given) == 2
        and given[0] in names
        and isinstance(given[1], int)
        and given[1] >= 0
    )
