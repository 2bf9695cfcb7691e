"""Where a model's example inputs come from: its checkpoint's processor, else its configuration.

The processor goes first, with what the user gives or with made samples, because it is what the
checkpoint's publisher ships, for models that no rule knows too. The configuration's plan stands
where there is no processor, or where the model refuses what it makes. Either is tried on the model
itself before an export begins, so a refusal is told in the model's own words.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.tensors import Dim
from crossfuse.core.text import listed
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.sources.huggingface.asked import Asked, RefusedError, ask
from crossfuse.export.sources.huggingface.input_plan import InputPlan, TextInput, add_text
from crossfuse.export.sources.huggingface.input_rules import plan_inputs
from crossfuse.export.sources.huggingface.known_sizes import fix_sizes
from crossfuse.export.sources.huggingface.processor import NoProcessorError, Processor
from crossfuse.export.sources.huggingface.processor_inputs import taken_by
from crossfuse.export.sources.huggingface.processor_plan import plan_from_processor
from crossfuse.export.sources.huggingface.sample_inputs import Given
from crossfuse.export.sources.huggingface.tried import refusal
from crossfuse.export.sources.huggingface.varied_axes import axes_among, fits
from crossfuse.spec.input_origin import YOURS

if TYPE_CHECKING:
    from torch import nn

    from crossfuse.spec.model_spec import Sampler

__all__ = ["CONFIGURATION", "PROCESSOR", "Planned", "planned", "planned_by_examples"]

_LOG = logging.getLogger(__name__)

PROCESSOR, CONFIGURATION = "the checkpoint's processor", "configuration"

_OWN_INPUTS = Advice(
    "Give it inputs of your own: {}, or samples for its processor: {}",
    Said("--example FILE.npz", "inputs=..."),
    Said("--image, --text, --audio or --video", "image=, text=, audio= or video="),
)
_MOST = 8
_IMAGES = ("pixel_", "image_", "images", "video_")
_DECODED = "decoder_input_ids"


@dataclass(frozen=True)
class Planned:
    """A model's inputs.

    Attributes:
        inputs: example tensors by name, and sizes that are fixed as lists of numbers.
        dynamic: input → axis → dimension.
        sampler: makes others; where None, the examples are imitated.
        source: where they came from, in words.
        examples: further ones.
        context: inputs that change rarely.
        decode: ids of a model that decodes.
        fixed: dimensions that can't be varied → why.
        settled, counts: as of a spec.
        asked: the model with its processor, where that made them.
    """

    inputs: Mapping[str, Any]
    dynamic: Mapping[str, Mapping[int, str | Dim]]
    sampler: Sampler | None
    source: str
    examples: Sequence[Mapping[str, Tensor]] = ()
    context: tuple[str, ...] = ()
    decode: str | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    settled: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    asked: Asked | None = None

    def takes(self, example: Mapping[str, Tensor]) -> bool:
        """Whether inputs of the user's have the same names, types and fixed sizes."""
        axes = {
            name: {axis: Dim.parse(dim) for axis, dim in own.items()}
            for name, own in self.dynamic.items()
        }
        tensors = {name: t for name, t in self.inputs.items() if isinstance(t, Tensor)}
        return fits(example, tensors, axes)


def planned(model: nn.Module, processor: Processor | NoProcessorError, given: Given) -> Planned:
    """The inputs of a model.

    Args:
        model: of ``transformers``.
        processor: its checkpoint's, or why there is none.
        given: samples of the user's for the processor.

    Raises:
        InputError: the model's inputs can't be told, the model refuses them, or the user's samples
            can't be used.
    """
    plan = _plan_of(model)
    known = _decoder_of(model) if isinstance(plan, InputError) else plan
    reason = str(processor)
    if isinstance(processor, Processor):
        try:
            asked = ask(model, processor, given, known)
            found = plan_from_processor(asked)
            tensors = {n: t for n, t in found.inputs.items() if isinstance(t, Tensor)}
            context = _context(tensors, known)
            return Planned(
                found.inputs,
                found.dynamic,
                found.sampler,
                PROCESSOR,
                found.examples,
                context,
                _decode(model, tensors, context, known),
                found.fixed,
                found.settled,
                asked=asked,
            )
        except NoProcessorError as error:
            reason = str(error)
        except RefusedError as error:
            reason = f"the model refuses what its processor makes: {error}"
    if given:
        raise InputError(reason, where=type(model).__name__, do=_OWN_INPUTS)
    _LOG.debug("inputs from the configuration: %s", reason)
    absent = isinstance(processor, NoProcessorError) and processor.absent
    tried = None if absent else reason
    if isinstance(plan, InputError):
        raise _unplanned(plan, tried) from plan
    return _from_configuration(model, plan, tried)


def planned_by_examples(model: nn.Module, examples: Sequence[Mapping[str, Tensor]]) -> Planned:
    """The inputs of a model as the user gives them: the first is the example, and axes that have
    different sizes among them are dynamic.

    Raises:
        InputError: the model refuses the first.
    """
    first = examples[0]
    why = refusal(model, first)
    if why is not None:
        raise InputError(
            f"the eager model fails on the example: {why}",
            where=type(model).__name__,
            got=listed(_shapes(first), _MOST),
        )
    context = _context(first, None)
    decode = _decode(model, first, context, None)
    return Planned(first, axes_among(examples), None, YOURS, context=context, decode=decode)


def _plan_of(model: nn.Module) -> InputPlan | InputError:
    """The configuration's plan, or why there is none."""
    try:
        return plan_inputs(model)
    except InputError as error:
        return error


def _decoder_of(model: Any) -> InputPlan | None:
    """A decoder's ids alone, which no processor makes, of a model with an encoder."""
    if not getattr(model.config, "is_encoder_decoder", False) or _DECODED not in taken_by(model):
        return None
    plan = InputPlan()
    plan.dim("batch", 2)
    decoder = model.config.get_text_config(decoder=True)
    add_text(plan, decoder, TextInput("decoder_text", "decoder_"))
    return plan


def _unplanned(error: InputError, reason: str | None) -> InputError:
    """The refusal of what was planned, with what came of the processor before."""
    before = "" if reason is None else f". Before that, {reason}"
    own = error.do if isinstance(error.do, str | Advice) else ""
    files = Advice("{}. {}", own, _OWN_INPUTS) if own else _OWN_INPUTS
    return InputError(
        f"{error.what}{before}",
        where=error.where,
        got=error.got,
        expected=error.expected,
        do=files if reason is None else _OWN_INPUTS,
    )


def _from_configuration(model: nn.Module, plan: InputPlan, reason: str | None) -> Planned:
    """The plan as it is: it was tried when it was made."""
    inputs = plan.sample(plan.example, torch.Generator().manual_seed(0))
    if plan.held:
        fix_sizes(model, plan.held)
    return Planned(
        {**inputs, **plan.held},
        plan.dynamic,
        plan.sample,
        f"{CONFIGURATION} ({reason})" if reason else CONFIGURATION,
        context=plan.context,
        decode=plan.decode,
        settled=plan.settled,
        counts=plan.counts,
    )


def _shapes(inputs: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} {list(tensor.shape)}" for name, tensor in inputs.items()]


def _context(inputs: Mapping[str, Tensor], plan: InputPlan | None) -> tuple[str, ...]:
    """What changes rarely: as the plan says, else images beside texts, else what an encoder takes
    beside a decoder."""
    if plan is not None and plan.context and set(plan.context) < set(inputs):
        return plan.context
    images = tuple(name for name in inputs if name.startswith(_IMAGES))
    if images and any(name.endswith("input_ids") for name in inputs):
        return images
    encoder = tuple(name for name in inputs if not name.startswith("decoder_"))
    return encoder if len(encoder) < len(inputs) else ()


def _decode(
    model: Any, inputs: Mapping[str, Tensor], context: Sequence[str], plan: InputPlan | None
) -> str | None:
    """The ids that grow: as the plan says, else a decoder's."""
    if plan is not None and plan.decode in set(inputs) - set(context):
        return plan.decode
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    if context and encoder_decoder and set(inputs) - set(context) == {_DECODED}:
        return _DECODED
    return None
