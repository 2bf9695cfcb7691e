"""Inputs by the names of a signature, in the form that the model takes: the usual forms first, then
others, until the model runs with them in eager."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from crossfuse.export.sources.huggingface.argument_rules import ASKED_FOR, FORMS, USUAL
from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.placeholders import (
    SENSES,
    Sense,
    counted_in,
    makes,
    put_placeholders,
    sense_of,
    token_of,
    told_counts,
)
from crossfuse.export.sources.huggingface.read_lengths import hold_read_lengths
from crossfuse.export.sources.huggingface.rope_positions import put_positions
from crossfuse.export.sources.huggingface.trial import Refusal, draws, narrow, refusal_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["plan_by_name"]

_MOST_TRIALS = 32
"""Eager runs that the search for a form takes at most."""

_DRAWN = "noise"
"""Random numbers, which some models draw where they are given none."""

_SOUND = ("input_features", "input_values")
"""Beside a text or an image, sound is planned only where it has placeholders."""


def plan_by_name(model: nn.Module, takes: set[str]) -> tuple[InputPlan, Refusal | None]:
    """A plan that the model takes; or else the usual one, with what the model says to it.

    Args:
        model: in evaluation mode.
        takes: names that its ``forward`` takes.
    """
    search = _Search(model, takes)
    names = _usual(model, takes)
    for _ in range(4):
        plan = search.plan_of(names)
        if plan is not None:
            return search.without_chance(plan, names), None
        asked = search.asked_for(names)
        if not asked:
            break
        names = [*names, asked[0]]
    for name in ASKED_FOR:
        if name in takes and name not in names:
            plan = search.plan_of([*names, name])
            if plan is not None:
                return plan, None
    return search.first


class _Search:
    """Tries plans on a model.

    Args:
        model: that is asked.
        takes: names that its ``forward`` takes.
    """

    def __init__(self, model: nn.Module, takes: set[str]) -> None:
        self._model, self._takes = model, takes
        self._left = _MOST_TRIALS
        self._said: list[Refusal] = []
        self.first: tuple[InputPlan, Refusal | None] = (_new_plan(), None)

    def asked_for(self, names: Sequence[str]) -> list[str]:
        """Arguments that the refusals speak of and that can be planned."""
        others = {name for name in self._takes - set(names) if name in FORMS}
        spoken = [name for refusal in self._said for name in refusal.names(others)]
        return list(dict.fromkeys(spoken))

    def plan_of(self, names: Sequence[str]) -> InputPlan | None:
        """A plan of these arguments that the model takes, by the first form that it takes."""
        for plan in self._plans(names):
            if self._left <= 0:
                return None
            self._left -= 1
            refusal = self._refusal(plan)
            if refusal is None:
                hold_read_lengths(self._model, plan)
                narrow(self._model, plan)
                return put_positions(self._model, plan, self._takes)
            self._said.append(refusal)
            if self.first[1] is None:
                self.first = plan, refusal
        return None

    def without_chance(self, plan: InputPlan, names: Sequence[str]) -> InputPlan:
        """A plan with the numbers that the model would draw, where it takes them."""
        if _DRAWN not in self._takes or _DRAWN in plan.shapes or not draws(self._model, plan):
            return plan
        return self.plan_of([*names, _DRAWN]) or plan

    def _refusal(self, plan: InputPlan) -> Refusal | None:
        """What the model says; where it counts other placeholders than stand there, they are put,
        and it is asked again."""
        refusal = refusal_of(self._model, plan)
        senses = self._senses(plan)
        told = None if refusal is None else told_counts(refusal.message)
        if told is None or "input_ids" not in plan.shapes:
            return refusal
        sense, _, features = told
        if not sense and len(senses) == 1:
            sense = senses[0].name
        count = features // self._batch(plan)
        if sense and count and "text" in plan.dims:
            put_placeholders(plan, self._model.config, {sense: count})
            return refusal_of(self._model, plan)
        return refusal

    def _plans(self, names: Sequence[str]) -> Iterator[InputPlan]:
        """All arguments in their usual forms, then each in its others."""
        usual = self._plan(names, {})
        if usual is None or not usual.shapes:
            return
        yield usual
        for name in names:
            for place in range(1, len(FORMS[name])):
                plan = self._plan(names, {name: place})
                if plan is None:
                    break
                yield plan

    def _plan(self, names: Sequence[str], places: dict[str, int]) -> InputPlan | None:
        """A plan with the arguments in the forms at some places among those that fit; None where
        there are not as many."""
        plan = _new_plan()
        for name in names:
            if name in plan.shapes or name in plan.held:
                continue
            found = self._with(plan, name, places.get(name, 0))
            if found is None and name in places:
                return None
            plan = plan if found is None else found
        self._ask(plan)
        return plan

    def _with(self, plan: InputPlan, name: str, place: int) -> InputPlan | None:
        for form in FORMS[name]:
            more = plan.copy()
            try:
                form(more, self._model, self._takes)
            except (AttributeError, TypeError, ValueError):
                continue  # the configuration has not what this form reads
            if more.shapes.keys() == plan.shapes.keys():
                continue
            if place == 0:
                return more
            place -= 1
        return None

    def _ask(self, plan: InputPlan) -> None:
        """Count what the model makes of each sense, and put as many placeholders."""
        config: Any = self._model.config
        if "input_ids" not in plan.shapes or "text" not in plan.dims:
            return
        senses = self._senses(plan)
        if not senses:
            return
        if "token_type_ids" in self._takes:
            FORMS["token_type_ids"][0](plan, self._model, self._takes)
        made = plan.sample(plan.example, torch.Generator().manual_seed(0)) | plan.held_tensors()
        counts = {}
        for sense in senses:
            rows = counted_in(self._model, sense, made)
            if rows:
                counts[sense.name] = rows // self._batch(plan)
            elif not makes(self._model, sense):
                counts[sense.name] = self._told(plan, sense)
        put_placeholders(plan, config, counts)

    def _senses(self, plan: InputPlan) -> list[Sense]:
        """What is planned beside a text and has placeholders."""
        planned = [*plan.shapes, *plan.held]
        return [
            sense
            for sense in SENSES
            if token_of(self._model.config, sense) is not None
            and any(sense_of(name) is sense for name in planned)
        ]

    def _told(self, plan: InputPlan, sense: Sense) -> int:
        """How many placeholders a model wants that has no method to be asked: what it says to two.
        One, in whose place it puts all features, where it says nothing of them."""
        two = plan.copy()
        put_placeholders(two, self._model.config, {sense.name: 2})
        refusal = refusal_of(self._model, two)
        told = None if refusal is None else told_counts(refusal.message)
        return 1 if told is None or told[0] != sense.name else told[2] // self._batch(plan)

    def _batch(self, plan: InputPlan) -> int:
        return plan.example.get("batch", 1)


def _new_plan() -> InputPlan:
    plan = InputPlan()
    plan.dim("batch", 2)
    return plan


def _usual(model: Any, takes: set[str]) -> list[str]:
    """Arguments that are planned at first: the usual ones, and those without a default."""
    audio = SENSES[-1]
    beside = "input_ids" in takes or "pixel_values" in takes
    required = {
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is inspect.Parameter.empty and name in FORMS
    }

    def usual(name: str) -> bool:
        if name not in takes or name == "token_type_ids":
            return False
        if name == "pixel_values" and "pixel_values_images" in takes:
            return False
        if name in _SOUND and beside:
            return token_of(model.config, audio) is not None
        return True

    return [
        *[name for name in USUAL if name in required or usual(name)],
        *[name for name in FORMS if name in required and name not in USUAL],
    ]
