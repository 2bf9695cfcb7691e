"""A model of ``transformers`` → :class:`ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.core.checkpoint_weights import weights_about
from crossfuse.core.foreign import door
from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.adapters import adapt
from crossfuse.export.sources.huggingface.asked import Asked
from crossfuse.export.sources.huggingface.carried import carried
from crossfuse.export.sources.huggingface.export_settings import set_for_export
from crossfuse.export.sources.huggingface.generation_settings import generation_settings
from crossfuse.export.sources.huggingface.load import Loaded, load_model
from crossfuse.export.sources.huggingface.planned import (
    Planned,
    planned,
    planned_by_examples,
)
from crossfuse.export.sources.huggingface.prefix_inputs import with_prefix
from crossfuse.export.sources.huggingface.processor import (
    NoProcessorError,
    Processor,
    as_processor,
    load_processor,
)
from crossfuse.export.sources.huggingface.prompt_form import with_prompt_form
from crossfuse.export.sources.huggingface.sample_inputs import Given
from crossfuse.export.sources.huggingface.tracing import tracing
from crossfuse.spec.input_origin import YOURS, origin_about
from crossfuse.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crossfuse.core.tensors import Dim

__all__ = ["checkpoint_spec", "huggingface_spec"]

_UNASKED = (
    "attentions*",
    "*_attentions*",
    "*past_key_values*",
    "*cache_params*",
    "*_cache",
    "*_cache_*",
    "mems*",
    "past_buckets_states*",
)
"""Outputs that some models return without being asked to: probabilities (``output_attentions`` is
off), and what they keep for a next step (``use_cache`` is off)."""


@door
def huggingface_spec(  # noqa: PLR0913 -- public: a spec's own fields, and how to load
    model: nn.Module | str,
    *,
    task: str | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    dynamic: Mapping[str, Mapping[int, str | Dim]] | None = None,
    context: Sequence[str] | None = None,
    decode: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    image: Any = (),
    text: str | Sequence[str] = (),
    audio: Any = (),
    video: Any = (),
    processor: Any = None,
    prefix: str | int | None = None,
) -> ModelSpec:
    """The spec of a model of ``transformers``.

    Args:
        model: the model, or a folder or identifier to load it from (safetensors only). Its
            configuration is set for an export, in place: no caches, results alone, by name.
        task: which head, when loading: a pipeline's task or a class name.
        inputs, dynamic, context, decode: as in :class:`ModelSpec`; where omitted, made by the
            checkpoint's own processor, or from the model's configuration: seeded inputs with padded
            masks, and named dimensions for batch and lengths.
        trust_remote_code: run code that comes with the checkpoint.
        allow_missing: let weights that the checkpoint lacks stay random; the manifest says which.
        image, text, audio, video: one sample or several, given to the checkpoint's processor in
            place of made ones: paths of images, sounds (WAV, NPY) and videos (a folder of frames,
            GIF, WebP), or images of Pillow's, arrays ``[time]`` at the processor's rate, and lists
            of frames.
        processor: of ``transformers``, in place of the checkpoint's; a model in memory has no
            other.
        prefix: give the first tokens as inputs of the context, ``prefix_NAME``, and the rest as
            ``NAME``: how many they are, or ``"placeholders"``, up to and with the last placeholder
            of the examples. A model in memory gets another ``forward`` for that. The rest is then
            decoded step by step, where the model can.

    Raises:
        InputError: the model can't be loaded, weights are missing, its inputs can't be told, it
            refuses them, a sample can't be used, or the first tokens can't be inputs of their own.
    """
    given = Given(_several(text), _several(image), _several(audio), _several(video))
    if inputs is not None and given:
        raise InputError("inputs are given, and samples for a processor too")
    if isinstance(model, str):
        found = load_model(
            model, task, trust_remote_code=trust_remote_code, allow_missing=allow_missing
        )
    else:
        found = Loaded(model)
    about = weights_about(found.missing, found.left_over)
    set_for_export(found.module)
    loaded = adapt(found.module)
    known = _processor(processor, found.folder, trust_remote_code=trust_remote_code)
    files = carried(known, getattr(found.module, "config", None), found.folder)
    if inputs is not None:
        name = type(loaded).__name__
        spec = ModelSpec(loaded, inputs, dynamic or {}, tuple(context or ()), name, decode=decode)
        about |= origin_about(YOURS)
    else:
        plan = planned(loaded, known, given)
        about |= origin_about(plan.source, plan.fixed)
        spec = _spec_of(loaded, plan, dynamic, context, decode)
    spec = replace(spec, about=about, processing=files)
    return _traced(spec, found.folder, prefix, None if inputs is not None else plan.asked)


def checkpoint_spec(
    source: str,
    *,
    task: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    given: Given | None = None,
    examples: Sequence[Mapping[str, Tensor]] = (),
    prefix: str | int | None = None,
) -> ModelSpec:
    """The spec of a checkpoint, to which the user may give real inputs.

    Where the plan of its inputs takes the examples, it stands, and they are left to the caller to
    add, except with a prefix, as they are in two parts then. Otherwise the first is the spec's own,
    and axes that differ among them are dynamic.

    Args:
        source, task, trust_remote_code, allow_missing, prefix: as of `huggingface_spec`.
        given: samples for its processor.
        examples: the user's inputs by name.

    Raises:
        InputError: as `huggingface_spec`; or the model refuses the first example.
    """
    found = load_model(
        source, task, trust_remote_code=trust_remote_code, allow_missing=allow_missing
    )
    about = weights_about(found.missing, found.left_over)
    set_for_export(found.module)
    loaded = adapt(found.module)
    known = _processor(None, found.folder, trust_remote_code=trust_remote_code)
    files = carried(known, getattr(found.module, "config", None), found.folder)
    try:
        plan = planned(loaded, known, given or Given())
    except InputError:
        if not examples or given:
            raise
        plan = planned_by_examples(loaded, examples)
    if examples and not given and not plan.takes(examples[0]):
        plan = planned_by_examples(loaded, examples)
    about |= origin_about(plan.source, plan.fixed)
    spec = _spec_of(loaded, plan, None, None, None)
    spec = replace(spec, about=about, processing=files)
    if prefix is not None:
        more = examples[1:] if plan.source == YOURS else examples
        spec = replace(spec, examples=[*spec.examples, *more])
    return _traced(spec, found.folder, prefix, plan.asked)


def _traced(
    spec: ModelSpec, folder: Path | None, prefix: str | int | None, asked: Asked | None
) -> ModelSpec:
    generation = generation_settings(spec.module, folder)
    spec = replace(spec, drop_outputs=_UNASKED, generation=generation)
    first = None
    if prefix is not None:
        spec, first = with_prefix(spec, str(prefix))
    spec = replace(spec, processing=with_prompt_form(spec.processing, asked, spec))
    return spec.traced_in(partial(tracing, inputs=dict(spec.inputs), first=first))


def _spec_of(
    model: nn.Module,
    plan: Planned,
    dynamic: Mapping[str, Mapping[int, str | Dim]] | None,
    context: Sequence[str] | None,
    decode: str | None,
) -> ModelSpec:
    made = ModelSpec(
        model,
        plan.inputs,
        plan.dynamic,
        tuple(context) if context is not None else plan.context,
        type(model).__name__,
        plan.sampler,
        examples=plan.examples,
    )
    of_plan = decode is None and context is None
    spec = replace(
        made,
        decode=plan.decode if of_plan else decode,
        decode_where_possible=of_plan,
        settled=plan.settled,
        counts=plan.counts,
        dims_found=True,
    )
    return spec if dynamic is None else replace(spec, examples=()).with_dynamic(dynamic)


def _processor(
    given: Any, folder: Path | None, *, trust_remote_code: bool
) -> Processor | NoProcessorError:
    """The processor that is given, or the checkpoint's, or why there is none."""
    if given is not None:
        return as_processor(given)
    if folder is None:
        return NoProcessorError(
            "a model in memory has no processor, unless one is given with it", absent=True
        )
    try:
        return load_processor(folder, trust_remote_code=trust_remote_code)
    except NoProcessorError as error:
        return error


def _several(given: Any) -> tuple[Any, ...]:
    """One sample, or several."""
    return tuple(given) if isinstance(given, list | tuple) else (given,)
