"""Generation over a session's steps: prompts in one run, then token by token, greedy, by samples or
with beams, until every sequence has ended."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from crossfuse.core.foreign import door
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.histories import Histories, Processor
from crossfuse.runtime.generation.prepared import Run, longest_of, prompts_of, scoring_output
from crossfuse.runtime.generation.processors import Hook
from crossfuse.runtime.generation.results import Finished, Generated, Streamed, gathered
from crossfuse.runtime.generation.sampling import Draws, log_probability, log_softmax
from crossfuse.runtime.generation.search_beams import BeamSearch
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.stopping import Stopping
from crossfuse.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["generate"]


@overload
def generate(
    session: Session,
    context: Context,
    prompt: object = ...,
    *,
    lengths: object = ...,
    mask: object = ...,
    stream: Literal[False] = ...,
    logits_hook: Hook | None = ...,
    output: str | None = ...,
    **settings: Any,
) -> Generated: ...


@overload
def generate(
    session: Session,
    context: Context,
    prompt: object = ...,
    *,
    lengths: object = ...,
    mask: object = ...,
    stream: Literal[True],
    logits_hook: Hook | None = ...,
    output: str | None = ...,
    **settings: Any,
) -> Generator[Streamed, None, Generated]: ...


@door
def generate(  # noqa: PLR0913 -- public: what is generated from, and how it comes
    session: Session,
    context: Context,
    prompt: object = None,
    *,
    lengths: object = None,
    mask: object = None,
    stream: bool = False,
    logits_hook: Hook | None = None,
    output: str | None = None,
    **settings: Any,
) -> Generated | Generator[Streamed, None, Generated]:
    """Generate sequences over contexts.

    Each comes out as it would alone, whatever prompts stand beside its own.

    Args:
        session: of a bundle that decodes.
        context: from ``session.encode``; each context gets equally many prompts.
        prompt: ids ``[prompts, tokens]``, a list per prompt, or one row for all; where omitted, the
            start token that the bundle's settings name.
        lengths: how many of each row count, where the prompt is padded on the right.
        mask: ``[prompts, tokens]``, nonzero where a token of the prompt counts, wherever the
            padding is; in place of ``lengths``.
        stream: give an iterator of `Streamed`, one for each step, that returns the whole in the
            end; not with beams, of which none is settled before the end.
        logits_hook: called as ``hook(rows, scores)`` before each choice, with each sequence's
            tokens and the scores ``[sequences, vocabulary]`` float32; gives scores.
        output: the output that scores the tokens, ``[batch, tokens, vocabulary]``; by default
            ``logits``, or the only one.
        settings: of :class:`GenerationSettings`, in place of the bundle's own.

    Raises:
        InputError: a bundle that can't decode, prompts that don't fit or are too long, settings
            that are unknown or wrong, or no token that may come.
    """
    chosen = GenerationSettings.of(settings, session.generation)
    if stream and chosen.num_beams > 1:
        raise InputError(
            "beams are settled at their end, so there are no tokens to stream",
            got=f"num_beams={chosen.num_beams}",
            do="Give stream=False, or num_beams=1",
        )
    rows = prompts_of(context, chosen, prompt, lengths, mask)
    asked = any(settings.get(name) is not None for name in ("max_new_tokens", "max_length"))
    longest = longest_of(session, chosen, rows, asked=asked, before=context.before_count)
    run = Run.begin(session, context, chosen, rows, longest)
    run.hook, run.output = logits_hook, scoring_output(session, output)
    if chosen.num_beams > 1:
        return _with_beams(run)
    steps = _token_by_token(run)
    return steps if stream else _whole(steps)


def _whole(steps: Generator[Streamed, None, Generated]) -> Generated:
    """Run to the end."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: Generated = stop.value
            return found


def _token_by_token(run: Run) -> Generator[Streamed, None, Generated]:
    """Greedy, or by samples."""
    state, processors, draws = run.state, run.processors, run.draws
    stopping, rows = Stopping(run.settings), run.state.batch
    histories = Histories(
        np.zeros((rows, int(run.longest.max())), np.int64),
        run.prompts.copy(),
        run.prompts,
        run.longest,
    )
    width = int(run.prompts.max())
    histories.ids[:, :width] = state.ids[:, :width]
    active, ended = np.ones(rows, bool), np.zeros(rows, bool)
    chances: list[list[float]] = [[] for _ in range(rows)]
    temperature = run.settings.temperature if draws is not None else 1.0
    unscaled: list[list[float]] = [[] for _ in range(rows)]
    while active.any():
        scores = _processed(processors, histories.behind(run.before), run.scores())
        tokens, log_probs = _chosen(scores, active, draws)
        tokens[~active] = run.pad
        for row in np.flatnonzero(active).tolist():
            histories.ids[row, histories.lengths[row]] = tokens[row]
            histories.lengths[row] += 1
            chances[row].append(float(log_probs[row]))
            if temperature != 1:
                plain = log_softmax(scores[row] * np.float32(temperature))
                unscaled[row].append(float(plain[tokens[row]]))
            ended[row] = stopping.hit(histories.row(row)[None], int(run.prompts[row]))[0]
        yield Streamed(tokens, active.copy(), log_probs)
        active = active & ~ended & (histories.lengths < run.longest)
        if active.any():
            state.append(tokens[:, None], active.astype(np.int64))
    return gathered(
        [
            Finished(
                histories.row(row),
                int(run.prompts[row]),
                np.array(chances[row], np.float32),
                sum(chances[row]),
                bool(ended[row]),
                np.array(unscaled[row], np.float32) if temperature != 1 else None,
            )
            for row in range(rows)
        ],
        run.pad,
    )


def _processed(
    processors: Sequence[Processor], histories: Histories, scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    for process in processors:
        scores = process(histories, scores)
    return scores


def _chosen(
    scores: NDArray[np.float32], active: NDArray[np.bool_], draws: Draws | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A token for each active sequence, with its log-probability."""
    tokens = scores.argmax(-1)
    lost = active & ~np.isfinite(scores[np.arange(len(scores)), tokens])
    if lost.any():
        raise InputError(
            "no token may come next",
            where=f"sequence {int(lost.argmax())}",
            do="Forbid fewer tokens",
        )
    log_probs = np.zeros(len(scores), np.float32)
    for row in np.flatnonzero(active).tolist():
        if draws is not None:
            tokens[row] = draws.token(row, scores[row])
        log_probs[row] = log_probability(scores[row], tokens[row])
    return tokens.astype(np.int64), log_probs


def _with_beams(run: Run) -> Generated:
    """Beams of all prompts, one run for each of their tokens."""
    state, settings, processors, draws = run.state, run.settings, run.processors, run.draws
    count, stopping = settings.num_beams, Stopping(run.settings)
    searches = [
        BeamSearch(
            state.ids[first, : run.prompts[first]],
            int(run.longest[first]),
            settings,
            stopping,
            first // count,
        )
        for first in range(0, state.batch, count)
    ]
    width = int(run.longest.max())
    while True:
        histories = _histories_of(searches, run, width).behind(run.before)
        scores = _processed(processors, histories, log_softmax(run.scores()))
        order, fed = np.arange(state.batch), np.zeros(state.batch, np.int64)
        tokens = np.zeros((state.batch, 1), np.int64)
        for number, search in enumerate(searches):
            if search.done:
                continue
            rows = slice(number * count, (number + 1) * count)
            order[rows] = number * count + search.advance(scores[rows], draws)
            tokens[rows, 0] = search.running.ids[:, search.length - 1]
            fed[rows] = not search.done
        if not fed.any():
            break
        if (order != np.arange(state.batch)).any():
            state.reorder(order.tolist())
        state.append(tokens, fed)
    return gathered([one for search in searches for one in search.results()], run.pad)


def _histories_of(searches: Sequence[BeamSearch], run: Run, width: int) -> Histories:
    """The running beams' tokens."""
    ids = np.zeros((run.state.batch, width), np.int64)
    lengths = np.zeros(run.state.batch, np.int64)
    count = run.settings.num_beams
    for number, search in enumerate(searches):
        rows = slice(number * count, (number + 1) * count)
        ids[rows, : search.longest] = search.running.ids
        lengths[rows] = search.length
    return Histories(ids, lengths, run.prompts, run.longest)
