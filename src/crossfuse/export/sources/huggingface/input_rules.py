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
from crossfuse.export.sources.huggingface.input_plan import (
    InputPlan,
    InputRule,
    TextInput,
    add_image,
    add_text,
    text_config,
)
from crossfuse.export.sources.huggingface.sequence_rules import SEQUENCE_RULES

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
    """The plan for a model.

    Raises:
        InputError: nothing in its signature is known, or the rule of its type fails.
    """
    config: Any = model.config
    takes = set(inspect.signature(model.forward).parameters)
    plan = InputPlan()
    plan.dim("batch", 2)
    rule = RULES.get(config.model_type)
    if rule is not None:
        _LOG.debug("inputs by the rule of model type %r", config.model_type)
        with blaming(f"the input rule for model type {config.model_type!r} raised"):
            rule(plan, model, takes)
    if not plan.shapes:
        _LOG.debug("inputs by the names of the signature of %s", type(model).__name__)
        _add_by_name(plan, config, takes)
    if not plan.shapes:
        raise InputError(
            "its inputs can't be told from its configuration",
            where=type(model).__name__,
            got=", ".join(sorted(takes)),
            do="Write a factory that returns crossfuse.huggingface_spec(model, inputs=…, "
            "dynamic=…), or a rule for crossfuse.register_input_rule",
        )
    if not plan.context:
        plan.context = _context(plan)
    queries = set(plan.shapes) - set(plan.context)
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if plan.context and queries == {"decoder_input_ids"} and encoder_decoder:
        plan.decode = "decoder_input_ids"
    return plan


def _context(plan: InputPlan) -> tuple[str, ...]:
    """What changes rarely: an image beside text, and otherwise what an encoder takes beside a
    decoder."""
    images = tuple(name for name in plan.shapes if name in ("pixel_values", "pixel_mask"))
    if images and len(images) < len(plan.shapes):
        return images
    encoder = tuple(name for name in plan.shapes if not name.startswith("decoder_"))
    return encoder if len(encoder) < len(plan.shapes) else ()


def _add_by_name(plan: InputPlan, config: Any, takes: set[str]) -> None:
    """What the names of a signature say by themselves."""
    if "pixel_values" in takes:
        add_image(plan, config)
    if "input_ids" in takes:
        add_text(plan, text_config(config), TextInput(masked="attention_mask" in takes))
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if "decoder_input_ids" in takes and encoder_decoder:
        decoder = config.get_text_config(decoder=True)
        add_text(plan, decoder, TextInput("decoder_text", "decoder_"))
