"""`BeamSearch`: several sequences of one prompt side by side, the best of which go on.

It is the search of ``transformers``, one prompt at a time: scores are float32 sums of
log-probabilities; what ended is compared over its length to the power of the length penalty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.runtime.generation.results import Finished
from crossfuse.runtime.generation.sampling import Draws, top
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.stopping import Stopping

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BeamSearch"]

_NEVER = np.float32(-1e9)
"""What takes a sequence out of a comparison."""


class _Beams(NamedTuple):
    """Sequences side by side: tokens ``[n, longest]``, each token's log-probability
    ``[n, longest new]``, scores ``[n]`` and lengths ``[n]``, and which ended by themselves."""

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    scores: NDArray[np.float32]
    lengths: NDArray[np.int64]
    ended: NDArray[np.bool_]

    def at(self, places: NDArray[np.int64]) -> _Beams:
        """Those at the places."""
        return _Beams._make(part[places] for part in self)

    def beside(self, other: _Beams) -> _Beams:
        """These, and the others behind them."""
        pairs: Iterable[tuple[Any, Any]] = zip(self, other, strict=True)
        return _Beams._make(np.concatenate(pair) for pair in pairs)


class BeamSearch:
    """The beams of one prompt.

    Args:
        prompt: its tokens.
        longest: the most tokens that a sequence may have.
        settings: of the search.
        stopping: what ends a sequence.
        number: of the prompt, for its draws.

    Attributes:
        length: how many tokens the running beams have.
        done: nothing better can come.
    """

    def __init__(
        self,
        prompt: NDArray[np.int64],
        longest: int,
        settings: GenerationSettings,
        stopping: Stopping,
        number: int = 0,
    ) -> None:
        self.settings, self.stopping, self.longest = settings, stopping, longest
        self.number = number
        self.prompt = self.length = len(prompt)
        self.done = False
        beams = settings.num_beams
        ids = np.zeros((beams, longest), np.int64)
        ids[:, : self.prompt] = prompt
        none = np.zeros((beams, longest - self.prompt), np.float32)
        lengths = np.full(beams, self.prompt, np.int64)
        # The beams are equal at first: one of them counts.
        scores = np.full(beams, _NEVER)
        self.finished = _Beams(ids, none, scores, lengths, np.zeros(beams, bool))
        self._is_finished = np.zeros(beams, bool)
        scores = scores.copy()
        scores[0] = 0
        self.running = _Beams(ids.copy(), none.copy(), scores, lengths, np.zeros(beams, bool))
        self._improves = True

    def advance(self, log_probs: NDArray[Any], draws: Draws | None) -> NDArray[np.int64]:
        """Choose among all continuations.

        Args:
            log_probs: ``[beams, vocabulary]`` float32, of each running beam's next token.
            draws: of the samples; None takes the best.

        Returns:
            ``[beams]``: which beam each of those that run on continues.
        """
        chosen, origins = self._continuations(log_probs, draws)
        hits = self.stopping.hit(chosen.ids[:, : self.length + 1], self.prompt)
        chosen = chosen._replace(ended=hits)
        hits = hits | (self.length + 1 >= self.longest)
        beams = self.settings.num_beams
        left = chosen.scores + hits.astype(np.float32) * _NEVER
        on = top(left, beams)
        self.running = chosen._replace(scores=left).at(on)
        self._finish(chosen, hits)
        self.length += 1
        self._settle(bool(hits.all()))
        return origins[on]

    def results(self) -> list[Finished]:
        """The best sequences, the best first."""
        found = []
        for row in range(self.settings.num_return_sequences):
            length = int(self.finished.lengths[row])
            found.append(
                Finished(
                    self.finished.ids[row, :length],
                    self.prompt,
                    self.finished.log_probs[row, : length - self.prompt],
                    float(self.finished.scores[row]),
                    bool(self.finished.ended[row]),
                )
            )
        return found

    def _continuations(
        self, log_probs: NDArray[Any], draws: Draws | None
    ) -> tuple[_Beams, NDArray[np.int64]]:
        """Enough of them that as many as there are beams go on, whatever ends, and the beam that
        each continues."""
        summed = (log_probs + self.running.scores[:, None]).reshape(-1)
        count = max(2, 1 + len(self.settings.eos_token_id)) * self.settings.num_beams
        places = draws.several(self.number, summed, count) if draws else top(summed, count)
        origins, tokens = np.divmod(places, log_probs.shape[-1])
        chosen = self.running.at(origins)
        chosen.ids[:, self.length] = tokens
        chosen.log_probs[:, self.length - self.prompt] = log_probs[origins, tokens]
        lengths = np.full(len(places), self.length + 1, np.int64)
        return chosen._replace(scores=summed[places], lengths=lengths), origins

    def _finish(self, chosen: _Beams, hits: NDArray[np.bool_]) -> None:
        """Put what ended among the best so far."""
        beams, settings = self.settings.num_beams, self.settings
        just = hits & (np.arange(len(hits)) < beams)
        scores = chosen.scores / (self.length + 1 - self.prompt) ** settings.length_penalty
        full = bool(self._is_finished.all()) and settings.early_stopping is True
        scores = scores + np.float32(full) * _NEVER
        scores = scores + np.float32(not self._improves) * _NEVER
        scores = scores + (~just).astype(np.float32) * _NEVER
        merged = self.finished.beside(chosen._replace(scores=scores.astype(np.float32)))
        best = top(merged.scores, beams)
        self.finished = merged.at(best)
        self._is_finished = np.concatenate([self._is_finished, just])[best]

    def _settle(self, all_hit: bool) -> None:
        """Whether anything better can come."""
        settings = self.settings
        penalty = settings.length_penalty
        ahead = settings.early_stopping == "never" and penalty > 0
        length = (self.longest if ahead else self.length) - self.prompt
        best = self.running.scores[:1] / length**penalty
        worst = np.where(self._is_finished, self.finished.scores.min(), _NEVER)
        self._improves = self._improves and bool((best > worst).any())
        full = bool(self._is_finished.all()) and settings.early_stopping is True
        self.done = not self._improves or full or all_hit
