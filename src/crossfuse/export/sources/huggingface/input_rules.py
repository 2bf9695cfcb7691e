"""Example inputs of a model of ``transformers``, from its configuration: by the rule of its type,
or by what the names of its signature say by themselves."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from crossfuse.core.foreign import blaming
from crossfuse.core.plugins import Registry
from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.image_rules import IMAGE_RULES
from crossfuse.export.sources.huggingface.input_plan import InputPlan, InputRule
from crossfuse.export.sources.huggingface.placeholders import sense_of
from crossfuse.export.sources.huggingface.planning import plan_by_name
from crossfuse.export.sources.huggingface.sequence_rules import SEQUENCE_RULES
from crossfuse.export.sources.huggingface.trial import Refusal, refusal_of, refused

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GROUP", "RULES", "plan_inputs", "register_input_rule"]

GROUP = "crossfuse.input_rules"
"""The entry points through which packages offer rules, each by the model type that it is for."""

_LOG = logging.getLogger(__name__)


def _accept(name: str, given: object, package: str) -> InputRule:
    if not callable(given):
        raise InputError(
            "what is offered is no input rule", where=name, got=repr(given), expected="a function"
        )
    return given


RULES: Registry[InputRule] = Registry(
    "input rule", GROUP, {**IMAGE_RULES, **SEQUENCE_RULES}, _accept
)
"""All rules by model type."""


def register_input_rule(model_type: str, rule: InputRule) -> None:
    """Make known to this process what models of a type take; again with the same rule, nothing
    happens.

    A package makes its rules known to all processes by entry points of the group
    ``crossfuse.input_rules`` instead, named after the model types.

    Args:
        model_type: as the configuration says it.
        rule: plans the inputs; see
            :data:`~crossfuse.export.sources.huggingface.input_plan.InputRule`.

    Raises:
        InputError: no function, or another rule is for this type.
    """
    RULES.register(model_type, rule)


def plan_inputs(model: nn.Module) -> InputPlan:
    """The plan for a model, which it takes in eager.

    Raises:
        InputError: nothing in its signature is known, the rule of its type fails, or the model
            itself refuses what was planned.
    """
    config: Any = model.config
    takes = set(inspect.signature(model.forward).parameters)
    plan, refusal = _by_rule(model, takes)
    if not plan.shapes or refusal is not None:
        _LOG.debug("inputs by the names of the signature of %s", type(model).__name__)
        named, other = plan_by_name(model, takes)
        if not plan.shapes or other is None:
            plan, refusal = named, other
    if not plan.shapes:
        raise InputError(
            "its inputs can't be told from its configuration",
            where=type(model).__name__,
            got=", ".join(sorted(takes)),
            do="Write a factory that returns crossfuse.huggingface_spec(model, inputs=…, "
            "dynamic=…), or a rule for crossfuse.register_input_rule",
        )
    if refusal is not None:
        raise refused(model, refusal, takes - set(plan.shapes)) from refusal.error
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
    if not plan.context:
        plan.context = _context(plan, encoder_decoder)
    queries = set(plan.shapes) - set(plan.context)
    grows = len(plan.shapes.get("decoder_input_ids", ())) == 2  # several codebooks don't
    if plan.context and queries == {"decoder_input_ids"} and encoder_decoder and grows:
        plan.decode = "decoder_input_ids"
    return plan


def _by_rule(model: Any, takes: set[str]) -> tuple[InputPlan, Refusal | None]:
    """The plan of the rule of the model's type, empty without one, and what the model says."""
    plan = InputPlan()
    plan.dim("batch", 2)
    model_type = model.config.model_type
    rule = RULES.get(model_type)
    if rule is None:
        return plan, None
    _LOG.debug("inputs by the rule of model type %r", model_type)
    with blaming(f"the input rule for model type {model_type!r} raised"):
        rule(plan, model, takes)
    return plan, refusal_of(model, plan) if plan.shapes else None


def _context(plan: InputPlan, encoder_decoder: bool) -> tuple[str, ...]:
    """What changes rarely: what an encoder takes beside its decoder, else an image or a sound
    beside a text."""
    encoder = tuple(name for name in plan.shapes if not name.startswith("decoder_"))
    seen = tuple(name for name in plan.shapes if sense_of(name) is not None)
    if len(encoder) == len(plan.shapes):
        return seen if len(seen) < len(encoder) else ()
    return encoder if encoder_decoder or not seen else seen
