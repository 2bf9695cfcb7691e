"""A model of ``transformers`` → :class:`ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from crossfuse.core.checkpoint_weights import weights_about
from crossfuse.core.foreign import door
from crossfuse.export.sources.huggingface.adapters import adapt
from crossfuse.export.sources.huggingface.generation_settings import generation_settings
from crossfuse.export.sources.huggingface.input_rules import plan_inputs
from crossfuse.export.sources.huggingface.load import load_model
from crossfuse.export.sources.huggingface.tracing import tracing
from crossfuse.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crossfuse.core.tensors import Dim

__all__ = ["huggingface_spec"]

_UNASKED = ("attentions*", "*_attentions*")
"""Outputs that some models return without being asked to (``output_attentions`` is off)."""


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
) -> ModelSpec:
    """The spec of a model of ``transformers``.

    Args:
        model: the model, or a folder or identifier to load it from (safetensors only).
        task: which head, when loading: a pipeline's task or a class name.
        inputs, dynamic, context, decode: as in :class:`ModelSpec`; where omitted, made from the
            model's configuration: seeded inputs with padded masks, and named dimensions for batch
            and lengths.
        trust_remote_code: run code that comes with the checkpoint.
        allow_missing: let weights that the checkpoint lacks stay random; the manifest says which.

    Raises:
        InputError: the model can't be loaded, weights are missing, or its inputs can't be told from
            its configuration.
    """
    about: dict[str, Any] = {}
    if isinstance(model, str):
        found = load_model(
            model, task, trust_remote_code=trust_remote_code, allow_missing=allow_missing
        )
        model, about = found.module, weights_about(found.missing, found.left_over)
    loaded = adapt(model)
    name = type(loaded).__name__
    if inputs is not None:
        spec = ModelSpec(loaded, inputs, dynamic or {}, tuple(context or ()), name, decode=decode)
    else:
        plan = plan_inputs(loaded)
        made = ModelSpec.from_sampler(
            loaded,
            plan.sample,
            dynamic=dynamic if dynamic is not None else plan.dynamic,
            example=plan.example,
            context=tuple(context) if context is not None else plan.context,
            name=name,
        )
        planned = decode is None and context is None
        spec = replace(
            made, decode=plan.decode if planned else decode, decode_where_possible=planned
        )
    generation = generation_settings(loaded)
    return replace(spec, drop_outputs=_UNASKED, about=about, generation=generation).traced_in(
        partial(tracing, inputs=dict(spec.inputs))
    )
