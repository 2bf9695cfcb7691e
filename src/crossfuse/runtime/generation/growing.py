"""Sequences that grow beside each other, each by its own settings: `Growing`, and the choice of a
token for each of several (`choose`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.core.foreign import own
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.histories import Histories, Processor
from crossfuse.runtime.generation.prepared import longest_of, prompts_of
from crossfuse.runtime.generation.processors import Hook, processors_of
from crossfuse.runtime.generation.results import Finished, Generated, gathered
from crossfuse.runtime.generation.sampling import Draws, log_probability, warpers_of
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.stopping import Stopping
from crossfuse.runtime.generation.ticket import Ticket, Token
from crossfuse.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Choices", "Growing", "choose", "growing"]


class Choices(NamedTuple):
    """How the next token is chosen.

    Attributes:
        kind: equal for sequences that may be computed together.
        settings: of the sequence.
        processors: what is done to the scores.
        stopping: what ends a sequence.
    """

    kind: object
    settings: GenerationSettings
    processors: Sequence[Processor]
    stopping: Stopping

    @classmethod
    def of(cls, settings: GenerationSettings, hook: Hook | None) -> Choices:
        """By settings, and perhaps a caller's own."""
        processors = [*processors_of(settings, hook), *warpers_of(settings)]
        kind = settings.changed(seed=None) if hook is None else object()
        return cls(kind, settings, processors, Stopping(settings))


@dataclass
class Growing:
    """One sequence.

    Attributes:
        ticket: who waits for it.
        context: what it looks at.
        choices: how its tokens are chosen.
        ids: ``[longest]``: its tokens, prompt included; what is behind `length` means nothing.
        length: how many there are.
        prompt: how many of them are the prompt.
        draws: numbers of its own, where tokens are drawn.
        log_probs: of the new tokens.
        ended: it ended by itself.
    """

    ticket: Ticket
    context: Context
    choices: Choices
    ids: NDArray[np.int64]
    length: int
    prompt: int
    draws: Draws | None
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def tokens(self) -> list[int]:
        """Its tokens so far."""
        found: list[int] = self.ids[: self.length].tolist()
        return found

    @property
    def last(self) -> int:
        """The last of them."""
        return int(self.ids[self.length - 1])

    @property
    def complete(self) -> bool:
        """It has ended, or is as long as it may be."""
        return self.ended or self.length == len(self.ids)

    def add(self, token: int, log_prob: float) -> None:
        """One more token; who waits for it is told."""
        self.ids[self.length] = token
        self.length += 1
        self.log_probs.append(log_prob)
        self.ended = bool(self.choices.stopping.hit(self.ids[None, : self.length], self.prompt)[0])
        self.ticket.add(Token(token, log_prob))

    def whole(self) -> Generated:
        """As `runtime.generate` gives it."""
        settings = self.choices.settings
        pad = settings.pad_token_id
        pad = next(iter(settings.eos_token_id), 0) if pad is None else pad
        log_probs = np.array(self.log_probs, np.float32)
        score = sum(self.log_probs)
        one = Finished(self.ids[: self.length], self.prompt, log_probs, score, self.ended)
        return gathered([one], pad)


def growing(
    session: Session,
    context: Context,
    prompt: object,
    ticket: Ticket,
    choices: Choices,
    *,
    asked: bool,
) -> Growing:
    """A sequence that begins.

    Args:
        session: of a bundle that decodes.
        context: one.
        prompt: its ids; None for the bundle's own beginning.
        ticket: who waits for it.
        choices: how its tokens are chosen.
        asked: whether the caller said how long it may be.

    Raises:
        InputError: more than one sequence, beams, or a prompt that doesn't fit.
    """
    settings = choices.settings
    if settings.num_beams > 1 or settings.num_return_sequences > 1:
        raise InputError(
            "sequences that stand beside others are generated greedily or by samples, one each",
            got=f"num_beams={settings.num_beams}, "
            f"num_return_sequences={settings.num_return_sequences}",
            do="Give num_beams=1 and num_return_sequences=1",
        )
    rows = prompts_of(context, settings, prompt, None, None)
    if rows.batch != 1 or context.count != 1:
        raise InputError(
            "one sequence over one context is generated at a time",
            got=f"{rows.batch} prompts, {context.count} contexts",
            do="Submit each by itself",
        )
    longest = int(longest_of(session, settings, rows, asked=asked, before=context.before_count)[0])
    length = int(rows.lengths[0])
    ids = np.zeros(longest, np.int64)
    ids[:length] = rows.ids[0, :length]
    draws = Draws(settings.seed, 1) if settings.do_sample else None
    return Growing(ticket, context, choices, ids, length, length, draws)


def choose(
    sequences: Sequence[Growing],
    scores: NDArray[np.float32],
    failed: Callable[[Growing, CrossfuseError], None],
) -> None:
    """Give each sequence its next token; those of equal settings are computed together.

    Args:
        sequences: that have one to come.
        scores: ``[sequences, vocabulary]``; changed in place.
        failed: is told of those that get none, and why.
    """
    groups: dict[object, list[int]] = {}
    for row, one in enumerate(sequences):
        groups.setdefault(one.choices.kind, []).append(row)
    for rows in groups.values():
        members = [sequences[row] for row in rows]
        try:
            # All of them are taken as they are, and not copied.
            found = _processed(members, scores if len(rows) == len(scores) else scores[rows])
        except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to these alone
            for one in members:
                failed(one, own(error))
            continue
        for one, row in zip(members, found, strict=True):
            best = int(row.argmax())
            if not np.isfinite(row[best]):
                failed(one, InputError("no token may come next", do="Forbid fewer tokens"))
                continue
            token = best if one.draws is None else one.draws.token(0, row)
            one.add(token, log_probability(row, token))


def _processed(members: Sequence[Growing], scores: NDArray[np.float32]) -> NDArray[Any]:
    histories = _histories(members)
    for process in members[0].choices.processors:
        scores = process(histories, scores)
    return scores


def _histories(members: Iterable[Growing]) -> Histories:
    """Their tokens side by side, behind those of their contexts."""
    found = list(members)
    firsts = np.array([one.context.before_count for one in found], np.int64)
    lengths = np.array([one.length for one in found], np.int64) + firsts
    ids = np.zeros((len(found), int(lengths.max())), np.int64)
    for row, first, one in zip(ids, firsts, found, strict=True):
        if one.context.before is not None:
            row[:first] = one.context.before[0]
        row[first : first + one.length] = one.ids[: one.length]
    prompts = np.array([one.prompt for one in found], np.int64) + firsts
    longest = np.array([len(one.ids) for one in found], np.int64) + firsts
    return Histories(ids, lengths, prompts, longest)
