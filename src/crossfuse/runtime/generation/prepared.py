"""What a call of `generate` begins with: prompts, how long each sequence may become, and the state
behind the prompts (`Run`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crossfuse.core.tensors import NEXT, PROBABILITIES
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.context import Context
from crossfuse.runtime.decoding import DecodingState
from crossfuse.runtime.generation.histories import Processor
from crossfuse.runtime.generation.processors import Hook, processors_of
from crossfuse.runtime.generation.sampling import Draws, warpers_of
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.session import Session
from crossfuse.runtime.token_rows import TokenRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Run", "longest_of", "prompts_of", "scoring_output"]


@dataclass
class Run:
    """Sequences of one call: the state, and how many tokens each may have.

    Attributes:
        settings: of the call.
        state: a row for each sequence; all of the first prompt, then the next one's.
        prompts: ``[sequences]`` tokens of each prompt.
        longest: ``[sequences]``: the most tokens of each.
        hook, output: as given.
    """

    settings: GenerationSettings
    state: DecodingState
    prompts: NDArray[np.int64]
    longest: NDArray[np.int64]
    hook: Hook | None = None
    output: str = "logits"

    @classmethod
    def begin(
        cls,
        session: Session,
        context: Context,
        settings: GenerationSettings,
        rows: TokenRows,
        longest: NDArray[np.int64],
    ) -> Run:
        """Compute the prompts, each once."""
        state = session.start(context, rows.batch, prompt=rows.ids, lengths=rows.lengths)
        each = settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences
        if each > 1:
            outputs = {name: np.repeat(array, each, 0) for name, array in state.outputs.items()}
            state = state.fork(np.repeat(np.arange(rows.batch), each).tolist())
            state.outputs = outputs
        return cls(settings, state, np.repeat(rows.lengths, each), np.repeat(longest, each))

    @property
    def processors(self) -> list[Processor]:
        """What is done to the scores."""
        return [*processors_of(self.settings, self.hook), *warpers_of(self.settings)]

    @property
    def before(self) -> NDArray[np.int64] | None:
        """``[sequences, tokens]``: in front of the prompts, where there are some."""
        return self.state.context.before_each(self.state.batch)

    @property
    def draws(self) -> Draws | None:
        """Random numbers, where tokens are drawn."""
        settings = self.settings
        return Draws(settings.seed, self.state.batch) if settings.do_sample else None

    @property
    def pad(self) -> int:
        """What stands behind a sequence's end."""
        own = self.settings.pad_token_id
        return next(iter(self.settings.eos_token_id), 0) if own is None else own

    def scores(self) -> NDArray[np.float32]:
        """``[sequences, vocabulary]``: of the next token."""
        return np.array(self.state.outputs[self.output][:, -1], np.float32)


def prompts_of(
    context: Context, settings: GenerationSettings, prompt: object, lengths: object, mask: object
) -> TokenRows:
    """The prompts, one per context where one is for all."""
    if prompt is None and context.before is not None:
        raise InputError(
            "there is no prompt behind the first tokens, which are inputs of the context",
            do="Give prompt=ids: what follows them",
        )
    if prompt is None:
        starts = (settings.decoder_start_token_id, settings.bos_token_id)
        prompt = next((start for start in starts if start is not None), None)
    if prompt is None:
        raise InputError(
            "there is no prompt, and the bundle names no token to start with",
            do="Give prompt=ids, or decoder_start_token_id=ID",
        )
    rows = TokenRows.of(prompt, lengths, mask)
    if rows.batch == 1:
        rows = TokenRows.of(prompt, lengths, mask, context.count)
    if not rows.lengths.all():
        raise InputError("a prompt is empty", where=f"prompt[{int(rows.lengths.argmin())}]")
    return rows


def longest_of(
    session: Session, settings: GenerationSettings, rows: TokenRows, *, asked: bool, before: int = 0
) -> NDArray[np.int64]:
    """The most tokens of each sequence, without those ``before`` its prompt. The last one is not
    computed on, so the state reaches one further than it holds; what only the bundle's settings say
    goes as far as the state.

    Raises:
        InputError: a bundle that can't decode, more tokens than it holds, or a prompt as long.
    """
    if session.decode is None:
        raise InputError(
            "the bundle has no step stage",
            do=Advice("Export it with {}", Said("--decode INPUT", "ModelSpec(decode=...)")),
        )
    prompts, length = rows.lengths, session.decode.length
    if settings.max_new_tokens is not None:
        longest = prompts + settings.max_new_tokens
    else:
        longest = np.full(len(prompts), (settings.max_length or length + before) - before, np.int64)
    if not asked:
        longest = np.minimum(longest, length)
    if longest.max() > length + 1:
        raise InputError(
            "the bundle's state holds fewer tokens than asked for",
            got=f"up to {int(longest.max())} tokens",
            expected=f"at most {length + 1}, prompts included",
            do="Give a smaller max_new_tokens, or export with a larger range of the tokens' "
            "dimension",
        )
    if (prompts >= longest).any():
        row = int((prompts >= longest).argmax())
        raise InputError(
            "a prompt leaves no room for a token",
            where=f"prompt[{row}]",
            got=f"{int(prompts[row]) + before} tokens",
            expected=f"fewer than {int(longest[row]) + before}",
        )
    return longest


def scoring_output(session: Session, name: str | None) -> str:
    """The output that scores tokens."""
    outputs, no_scores = session.stages["step"].outputs, (NEXT, PROBABILITIES)
    specs = [spec for spec in outputs if not spec.name.startswith(no_scores)]
    names = [spec.name for spec in specs]
    chosen = name or ("logits" if "logits" in names else names[0])
    if chosen not in names or (name is None and chosen != "logits" and len(names) > 1):
        raise InputError(
            "which output scores the tokens is not known",
            got=name or ", ".join(names),
            expected=", ".join(names),
            do="Give output=NAME",
        )
    if len(next(spec for spec in specs if spec.name == chosen).shape) != 3:
        raise InputError(
            "the output does not score tokens", where=chosen, expected="[batch, tokens, vocabulary]"
        )
    return chosen
