"""A model asked with what its checkpoint's processor makes, until it takes it.

The processor is called in several ways, with two rows and with one. What it doesn't make (a
decoder's ids) comes from the configuration's plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.foreign import cause_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.sources.huggingface.input_plan import FRAMES, InputPlan, find
from crossfuse.export.sources.huggingface.processor import NoProcessorError, Processor
from crossfuse.export.sources.huggingface.processor_inputs import (
    Recipe,
    kinds_taken,
    processed,
    recipes,
    taken_by,
)
from crossfuse.export.sources.huggingface.sample_inputs import Given, Row, companion, rows_of
from crossfuse.export.sources.huggingface.tried import refusal

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Asked", "RefusedError", "ask"]

_LOG = logging.getLogger(__name__)

_DECODER = "decoder_"
_OPTIONS = {"images": "image", "text": "text", "videos": "video", "audio": "audio"}


class RefusedError(Exception):
    """The model takes nothing of what its processor makes; the text is the model's own."""


@dataclass(frozen=True)
class Asked:
    """A model with its processor, called in a way that serves.

    Attributes:
        model, processor: which.
        rows: of the sample.
        recipe: how the processor is called.
        plan: from the configuration, for what the processor doesn't make; or None.
        added: names of the inputs that come from it.
    """

    model: nn.Module
    processor: Processor
    rows: tuple[Row, ...]
    recipe: Recipe
    plan: InputPlan | None = None
    added: tuple[str, ...] = ()

    def made(
        self, rows: Sequence[Row] | None = None, texts: Sequence[Row] | None = None
    ) -> dict[str, Tensor]:
        """What the processor makes of the rows, or of others, by the names of the model's inputs.

        Args:
            rows: in place of the sample's.
            texts: rows whose texts are taken; where omitted, ``rows``.

        Raises:
            Exception: whatever the processor raises.
        """
        return processed(
            self.processor, self.recipe, rows or self.rows, taken_by(self.model), texts
        )

    def completed(
        self, made: Mapping[str, Tensor], sizes: Mapping[str, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What the processor made, with the inputs that come from the configuration.

        Args:
            made: by the processor.
            sizes: of the plan's dimensions, ``batch`` among them; the plan's examples where
                omitted.
            generator: fills them.
        """
        if self.plan is None:
            return dict(made)
        known = {**self.plan.example, **sizes}
        found = dict(made)
        for name, filler in self.plan.fillers.items():
            if name in self.added:
                shape = tuple(known[s] if isinstance(s, str) else s for s in self.plan.shapes[name])
                found[name] = filler(shape, generator, found)
        return found

    def refusal(self, made: Mapping[str, Tensor], rows: int) -> str | None:
        """Why the model doesn't take what was made of so many rows; None where it does."""
        generator = torch.Generator().manual_seed(0)
        return refusal(self.model, self.completed(made, {"batch": rows}, generator))


def ask(
    model: nn.Module, processor: Processor, given: Given, plan: InputPlan | None = None
) -> Asked:
    """Find a way to call the processor so that the model takes what it makes.

    Args:
        model: of ``transformers``.
        processor: its checkpoint's.
        given: by the user, in place of made samples.
        plan: from the configuration.

    Raises:
        InputError: the user gives what the processor or the model has no use for, or files that
            can't be read.
        NoProcessorError: the processor makes nothing that the model takes.
        RefusedError: the model takes none of it.
    """
    takes = taken_by(model)
    kinds = kinds_taken(processor, takes)
    _require_used(processor, given, kinds, type(model).__name__)
    if not kinds:
        raise NoProcessorError("the processor reads nothing that the model has an input for")
    failed, refused = "", ""
    for chosen in _chosen(kinds, given):
        first = rows_of(given, chosen, processor.rate, _frames(model))
        pairs = tuple(first) if len(first) > 1 else (first[0], companion(first[0]))
        for rows in (pairs, tuple(first)):
            for recipe in recipes(processor, chosen):
                asked = Asked(model, processor, rows, recipe, plan)
                try:
                    made = asked.made()
                    _require_rows(made, rows)
                except Exception as error:  # noqa: BLE001 -- a processor's code may raise anything
                    failed = failed or cause_of(error)
                    _LOG.debug("%s: the processor: %s", recipe, cause_of(error))
                    continue
                for added in _additions(plan, made, takes):
                    tried = replace(asked, added=added)
                    why = tried.refusal(made, len(rows)) if made else "nothing is made"
                    if why is None:
                        _LOG.debug("%s of %d rows, with %s", recipe, len(rows), added)
                        return tried
                    refused = refused or why
                    _LOG.debug("%s, with %s: the model: %s", recipe, added, why)
    if refused:
        raise RefusedError(refused)
    raise NoProcessorError(f"the checkpoint's processor fails: {failed}")


def _frames(model: Any) -> int | None:
    """How many frames of a video a model takes, where its configuration says so."""
    found = find(getattr(model, "config", None), *FRAMES)
    return found if isinstance(found, int) and found > 0 else None


def _require_rows(made: Mapping[str, Tensor], rows: Sequence[Row]) -> None:
    """Refuse a call that took several rows for one."""
    counts = {int(tensor.shape[0]) for tensor in made.values() if tensor.ndim}
    ids = made.get("input_ids")
    if len(rows) not in counts or (ids is not None and len(ids) != len(rows)):
        raise ValueError("it takes the rows for something else")


def _require_used(processor: Processor, given: Given, kinds: Sequence[str], model: str) -> None:
    for kind in given.kinds:
        if kind in kinds:
            continue
        name = _OPTIONS[kind]
        why = processor.why_not(kind)
        if why is None and kind in processor.kinds:
            why = "the model has no input for it"
        raise InputError(
            Advice("{} can't be used with this checkpoint", Said(f"--{name}", f"{name}=")),
            where=model,
            got=why or "its processor doesn't read that",
            expected=", ".join(_OPTIONS[kind] for kind in kinds) or "inputs of its own",
            do=Advice("Give the model's inputs: {}", Said("--example FILE.npz", "inputs=...")),
        )


def _chosen(kinds: Sequence[str], given: Given) -> Iterator[tuple[str, ...]]:
    """What to give the processor: all that it reads, or less, but the user's always."""
    seen = set()
    for left_out in ((), ("videos",), ("audio",), ("videos", "audio"), ("images", "audio"),
                     ("images", "videos"), ("text",)):  # fmt: skip
        found = tuple(k for k in kinds if k not in left_out or k in given.kinds)
        if found and found not in seen:
            seen.add(found)
            yield found


def _additions(
    plan: InputPlan | None, made: Mapping[str, Tensor], takes: Sequence[str]
) -> list[tuple[str, ...]]:
    """Names of what may be added to what the processor made: a decoder's inputs first, then
    nothing, then all that the plan has and that needs no dimension of its own."""
    if plan is None:
        return [()]
    missing = [name for name in plan.shapes if name not in made and name in takes]
    decoder = tuple(name for name in missing if name.startswith(_DECODER))
    every = tuple(
        name
        for name in missing
        if name in decoder
        or all(not isinstance(size, str) or size == "batch" for size in plan.shapes[name])
    )
    return list(dict.fromkeys((decoder, (), every)))
