"""`PromptForm`: a prompt around a text, as the processor of the model writes it, with the places of
an image among its first tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from crossfuse.core.json_form import AtLeast, Form
from crossfuse.core.tensors import PREFIX, TensorSpec
from crossfuse.core.text import brief
from crossfuse.errors import InputError
from crossfuse.runtime.processing.words import Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PromptForm"]

_Edge = Annotated[int, AtLeast(1, 1 << 20)]


@dataclass(frozen=True)
class PromptForm:
    """How prompts are written.

    Attributes:
        before, after: what is put around a text, the places of an image included.
        special: whether the tokenizer's own tokens are put around that.
        first: inputs of the first tokens in the examples of the export, ``[axes, tokens]`` each.
        mark: stands for an image in a text that is a whole prompt.
        stands_for: what is written in its place.
        sizes: heights and widths of the images whose places these are; None where it isn't known.
        tasks: texts in whose place others are written: one, or two with what else is said between.
    """

    __json__: ClassVar[Form] = Form(required=frozenset({"before", "after", "special", "first"}))

    before: str
    after: str
    special: bool
    first: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    mark: str | None = None
    stands_for: str | None = None
    sizes: tuple[tuple[_Edge, _Edge], ...] | None = None
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def ids(self, words: Words, text: str) -> list[int]:
        """Ids of the whole prompt around a text; of a text with a mark, of that alone.

        Raises:
            InputError: several marks, or more than a task.
        """
        text = self._worded(text)
        if self.mark and self.stands_for is not None and self.mark in text:
            if text.count(self.mark) > 1:
                raise InputError(
                    "the text has places for several images",
                    got=f"{self.mark} {text.count(self.mark)} times",
                    expected="once, or not at all",
                )
            return words.encode(text.replace(self.mark, self.stands_for), special=self.special)
        return words.encode(f"{self.before}{text}{self.after}", special=self.special)

    def _worded(self, text: str) -> str:
        """What is written for a text."""
        for task, parts in self.tasks.items():
            if task not in text:
                continue
            if len(parts) == 2:
                return parts[0] + text.replace(task, "").strip() + parts[1]
            if text != task:
                raise InputError(
                    "the model does this task to the whole image, without more words",
                    got=brief(repr(text), 80),
                    expected=repr(task),
                )
            return "".join(parts)
        return text

    @property
    def _beginning(self) -> str:
        """What prompts begin with, as a user writes it."""
        if self.mark and self.stands_for:
            return self.before.replace(self.stands_for, self.mark)
        return self.before

    def parts(
        self, ids: list[int], places: Collection[int], specs: Mapping[str, TensorSpec], tokens: str
    ) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """Inputs of the first tokens, and the ids that follow them.

        Args:
            ids: of the whole prompt.
            places: ids that stand for what was seen or heard.
            specs: inputs of the context by name.
            tokens: the input that grows token by token.

        Raises:
            InputError: places elsewhere than in the examples, no tokens behind them, or a bundle
                whose inputs of the first tokens are not these.
        """
        name = PREFIX + tokens
        needed = {name, *(one for one in specs if one.startswith(PREFIX))}
        if not needed <= self.first.keys():
            raise InputError(
                "the bundle doesn't say how its prompts begin",
                do="Make the ids with the model's own processor, and call session.encode and "
                "crossfuse.runtime.generate",
            )
        known = np.array(self.first[name][0], np.int64)
        own = np.array(ids[: len(known)], np.int64)
        rest = ids[len(known) :]
        wrong = own.shape != known.shape or any(one in places for one in rest)
        if wrong or (np.isin(own, list(places)) != np.isin(known, list(places))).any():
            raise InputError(
                "the prompt has its places elsewhere than the prompts that the model was exported "
                "with",
                got=_told(ids, places),
                expected=_told(known.tolist(), places),
                do=f"Begin the prompt as they did: {brief(self._beginning)!r}",
            )
        if not rest:
            raise InputError("no tokens follow the first ones", got=f"{len(ids)} tokens in all")
        made = {
            one: np.array(rows, np.int64) if len(specs[one].shape) < 3 else np.array(rows)[:, None]
            for one, rows in self.first.items()
            if one in specs
        }
        return {**made, name: own[None]}, rest


def _told(ids: list[int], places: Collection[int]) -> str:
    """Where the places of a prompt are."""
    found = [place for place, one in enumerate(ids) if one in places]
    if not found:
        return f"none among {len(ids)} tokens"
    return f"{len(found)} of them, from token {found[0]} to {found[-1]}"
