"""A model of ``diffusers`` → :class:`ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crossfuse.core.checkpoint_weights import weights_about
from crossfuse.core.foreign import door
from crossfuse.export.sources.diffusers.autoencoder import half_of
from crossfuse.export.sources.diffusers.input_rules import plan_inputs
from crossfuse.export.sources.diffusers.load import load_model
from crossfuse.export.sources.diffusers.locate import locate
from crossfuse.export.sources.diffusers.patches import tracing
from crossfuse.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from crossfuse.core.tensors import Dim

__all__ = ["diffusers_spec"]


@door
def diffusers_spec(
    model: nn.Module | str,
    *,
    half: str | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    dynamic: Mapping[str, Mapping[int, str | Dim]] | None = None,
    context: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> ModelSpec:
    """The spec of a model of ``diffusers``: what is denoised and the time step are the query, and
    what stays the same in all steps is the context.

    Args:
        model: the model, or its folder, or a pipeline's folder with or without ``/component``
            (safetensors only).
        half: of an autoencoder, ``encoder`` or ``decoder``; in a folder's text it stands behind
            the folder.
        inputs, dynamic, context: as in :class:`ModelSpec`; where omitted, made from the model's
            configuration, in the first form in which the model runs.
        allow_missing: let weights that the checkpoint lacks stay random; the manifest says which.

    Raises:
        InputError: the model can't be loaded, weights are missing, an autoencoder without a half,
            or its inputs can't be told from its configuration.
    """
    about: dict[str, Any] = {}
    if isinstance(model, str):
        located = locate(model)
        found = load_model(located.folder, allow_missing=allow_missing)
        model, half = found.module, half or located.half
        about = weights_about(found.missing, found.left_over)
    name = type(model).__name__
    loaded = half_of(model, half)
    if inputs is not None:
        spec = ModelSpec(loaded, inputs, dynamic or {}, tuple(context or ()), name)
    else:
        plan = plan_inputs(loaded)
        spec = ModelSpec.from_sampler(
            loaded,
            plan.sample,
            dynamic=dynamic if dynamic is not None else plan.dynamic,
            example=plan.example,
            context=tuple(context) if context is not None else tuple(plan.context),
            name=name if half is None else f"{name} {half}",
        )
    return replace(spec, about=about).traced_in(tracing)
