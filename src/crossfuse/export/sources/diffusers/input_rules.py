"""Inputs of models of ``diffusers``, by the names of their parameters: a rule per name. Which form
a model takes is asked of the model: the first in which it runs, at two sizes of every dimension."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.foreign import cause_of
from crossfuse.core.text import brief
from crossfuse.errors import InputError
from crossfuse.export.sources.diffusers.input_plan import (
    Form,
    InputPlan,
    Shape,
    factor_of,
    find,
    fixed_length,
    forms,
)
from crossfuse.export.sources.huggingface.input_fillers import classes, mask, normal, uniform
from crossfuse.spec.results import named_outputs

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RULES", "Rule", "plan_inputs"]

_LATENTS = ("sample", "hidden_states", "latents", "x")
"""Names of what is denoised, encoded or decoded."""


@dataclass(frozen=True)
class About:
    """What rules look at.

    Attributes:
        model, config: the model, and its configuration.
        form: that is tried.
        latents: the name and shape of what is denoised.
        required: the parameter that is planned has no default.
    """

    model: nn.Module
    config: Any
    form: Form
    latents: tuple[str, Shape]
    required: bool = False


Rule = Callable[[InputPlan, str, About], None]
"""Plans the input of a name, or nothing where the configuration does without it."""


def plan_inputs(model: nn.Module) -> InputPlan:
    """The inputs of a model, in the first form in which it runs.

    Raises:
        InputError: it needs inputs of which the configuration tells nothing, or runs in no form.
    """
    parameters = _parameters(model)
    names = frozenset(parameters)
    unknown = [
        name
        for name, required in parameters.items()
        if required and name not in RULES and name not in _LATENTS
    ]
    if unknown or not names & set(_LATENTS):
        raise _untold(model, f"arguments {', '.join(unknown) or 'without what is denoised'}")
    failure: str | None = None
    for form in forms(model, names):
        plan = _plan_in(model, form, parameters)
        failed = _fails(model, plan)
        if failed is None:
            return plan
        failure = failure or failed
    raise _untold(model, f"what it says: {failure}")


def _untold(model: nn.Module, got: str) -> InputError:
    return InputError(
        "the model's inputs can't be told from its configuration",
        where=type(model).__name__,
        got=got,
        do="Write a factory that returns crossfuse.diffusers_spec(model, inputs=…, dynamic=…, "
        "context=…), and name it path/file.py:factory",
    )


def _parameters(model: nn.Module) -> dict[str, bool]:
    """Parameters of a model's ``forward``, and which have no default."""
    found = inspect.signature(model.forward).parameters.values()
    named = (p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return {p.name: p.default is p.empty for p in named}


def _plan_in(model: nn.Module, form: Form, parameters: dict[str, bool]) -> InputPlan:
    config: Any = model.config
    plan = InputPlan()
    plan.dim("batch", 2)
    name = next(name for name in _LATENTS if name in parameters)
    shape = _latents(plan, model, form)
    plan.add(name, shape, normal)
    for other, required in parameters.items():
        if other in RULES:
            RULES[other](plan, other, About(model, config, form, (name, shape), required))
    return plan


def _fails(model: nn.Module, plan: InputPlan) -> str | None:
    """What a model says to the plan's inputs, at the example sizes and at others; None where it
    runs, and each sample has a result of its own."""
    for sizes in (plan.example, plan.other):
        try:
            with torch.no_grad():
                result = model(**plan.sample(sizes, torch.Generator().manual_seed(0)))
        except Exception as error:  # noqa: BLE001 -- a form that is not the model's fails in any way
            return brief(error) if str(error) else cause_of(error)
        outputs = named_outputs(result, {}, lambda _: False)
        wrong = {n: t.shape[0] for n, t in outputs.items() if t.shape[:1] != (sizes["batch"],)}
        if wrong:
            return f"{sizes['batch']} samples give {wrong}"
    return None


def _latents(plan: InputPlan, model: nn.Module, form: Form) -> Shape:
    """Shape of what is denoised; plans its dimensions."""
    config: Any = model.config
    channels = _channels(model, config)
    if form.layout == "tokens":
        return ("batch", plan.dim("tokens", 12, 2), channels)
    if form.layout == "length":
        return ("batch", channels, plan.dim("length", 4 * factor_of(model) * 4, 2))
    if form.layout == "vector":
        return ("batch", channels)
    grid = _grid(plan, model, form)
    if form.layout == "image":
        return ("batch", channels, *grid)
    fixed = find(config, "sample_frames", "num_frames") or 5
    frames: int | str = int(fixed) if form.rest_fixed else plan.dim("frames", 3)
    video = form.layout == "video"
    return ("batch", *((channels, frames) if video else (frames, channels)), *grid)


def _channels(model: nn.Module, config: Any) -> int:
    own = getattr(model, "input_channels", None)
    if isinstance(own, int):
        return own
    found = find(config, "in_channels", "latent_channels", "embedding_dim")
    return int(found) if isinstance(found, int) else 4


def _grid(plan: InputPlan, model: nn.Module, form: Form) -> tuple[int | str, int | str]:
    """Height and width of images."""
    config: Any = model.config
    factor = factor_of(model)
    if form.grid == "fixed":
        size = find(config, "sample_size")
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return int(height), int(width)
    most = find(config, "pos_embed_max_size")
    if form.grid == "free":
        high = most * factor if isinstance(most, int) else None
        # Odd, so that a model that halves images takes the way that is right for all sizes.
        odd = factor > 1
        height = plan.dim("height", max(4, 2 * factor) + odd, 2 * factor, high)
        return height, plan.dim("width", max(5, 3 * factor) + 2 * odd, 2 * factor, high)
    high = most if isinstance(most, int) else None
    height, width = plan.dim("height", 3, 2, high), plan.dim("width", 4, 2, high)
    return (height, width) if factor == 1 else (f"{factor}*{height}", f"{factor}*{width}")


def _text_length(plan: InputPlan, about: About) -> int | str:
    if about.form.rest_fixed:
        return fixed_length(about.config)
    return plan.dim("text", 7)


def _timestep(plan: InputPlan, name: str, about: About) -> None:
    """One per sample, of the range that the model takes: up to 1 where it scales them itself."""
    scales = any(getattr(m, "scale", 1) == 1000 for m in about.model.modules()) or (
        "img_ids" in _parameters(about.model)
    )
    plan.add(name, ("batch",), uniform(1.0 if scales else 999.0))


def _text(plan: InputPlan, name: str, about: About) -> None:
    if about.form.width is None:
        if about.required:
            plan.constants[name] = None
        return
    kind = find(about.config, "encoder_hid_dim_type")
    if kind in ("image_proj", "ip_image_proj") and about.required:
        plan.constants[name] = None
        return
    shape: Shape = ("batch", _text_length(plan, about), about.form.width)
    plan.add(name, shape, normal, context=True)


def _text_mask(plan: InputPlan, name: str, about: About) -> None:
    """Where pipelines give one: to transformers, not to UNets."""
    if about.form.width is not None and (about.required or "Transformer" in _kind(about)):
        plan.add(name, ("batch", _text_length(plan, about)), mask, context=True)


def _kind(about: About) -> str:
    return type(about.model).__name__


def _pooled(plan: InputPlan, name: str, about: About) -> None:
    width = find(about.config, "pooled_projection_dim")
    if isinstance(width, int):
        plan.add(name, ("batch", width), normal, context=True)


def _ids(plan: InputPlan, name: str, about: About) -> None:
    """Places of tokens on their axes: a row and a column for images, a count for text."""
    axes = find(about.config, "axes_dims_rope", "axes_dim")
    count = len(axes) if isinstance(axes, list | tuple) else 3
    if name == "txt_ids":
        plan.add(name, (_text_length(plan, about), count), _places, context=True)
    else:
        plan.add(name, ("tokens", count), _places)


def _places(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    count, axes = shape
    width = max(1, round(count**0.5))
    places = torch.zeros(count, axes)
    places[:, -1] = torch.arange(count) % width
    places[:, -2] = torch.arange(count) // width
    return places


def _guidance(plan: InputPlan, name: str, about: About) -> None:
    if find(about.config, "guidance_embeds"):
        plan.add(name, ("batch",), uniform(5.0))


def _classes(plan: InputPlan, name: str, about: About) -> None:
    count = find(about.config, "num_class_embeds", "num_embeds_ada_norm")
    kind = find(about.config, "class_embed_type")
    width = find(about.config, "projection_class_embeddings_input_dim")
    if kind in ("projection", "simple_projection") and isinstance(width, int):
        plan.add(name, ("batch", width), normal, context=True)
    elif kind == "timestep":
        plan.add(name, ("batch",), uniform(999.0), context=True)
    elif isinstance(count, int) and getattr(about.model, "caption_projection", None) is None:
        plan.add(name, ("batch",), classes(0, count), context=True)


def _added(plan: InputPlan, name: str, about: About) -> None:
    """What is added to the embedding of the time step: it stays the same in all steps."""
    config = about.config
    kind, hidden = find(config, "addition_embed_type"), find(config, "encoder_hid_dim_type")
    if kind == "text_time":
        times = int(config["addition_time_embed_dim"])
        width = int(config["projection_class_embeddings_input_dim"]) - 6 * times
        plan.add(f"{name}.text_embeds", ("batch", width), normal, context=True)
        plan.add(f"{name}.time_ids", ("batch", 6), uniform(999.0), context=True)
    elif kind in ("image", "text_image") or hidden in ("image_proj", "text_image_proj"):
        width = find(config, "encoder_hid_dim", "cross_attention_dim")
        plan.add(f"{name}.image_embeds", ("batch", int(width)), normal, context=True)
    elif getattr(about.model, "use_additional_conditions", False):
        plan.add(f"{name}.resolution", ("batch", 2), uniform(999.0), context=True)
        plan.add(f"{name}.aspect_ratio", ("batch", 1), uniform(2.0), context=True)


def _control(plan: InputPlan, name: str, about: About) -> None:
    """The image that controls: in pixels where the model makes it smaller, else as latents."""
    _, shape = about.latents
    convolved = find(about.config, "conditioning_embedding_out_channels")
    if isinstance(convolved, list | tuple) and about.form.layout == "image":
        channels = find(about.config, "conditioning_channels") or 3
        times = 2 ** (len(convolved) - 1)
        shape = ("batch", int(channels), *(_multiple(size, times) for size in shape[2:]))
    plan.add(name, shape, normal, context=True)


def _multiple(size: int | str, times: int) -> int | str:
    if isinstance(size, int):
        return times * size
    factor, _, dim = size.rpartition("*")
    return f"{times * int(factor or 1)}*{dim}"


def _pair(plan: InputPlan, name: str, about: About) -> None:
    plan.add(name, ("batch", 2), uniform(999.0), context=True)


def _embedding(plan: InputPlan, name: str, about: About) -> None:
    plan.add(name, about.latents[1], normal, context=True)


RULES: dict[str, Rule] = {
    "timestep": _timestep,
    "encoder_hidden_states": _text,
    "encoder_attention_mask": _text_mask,
    "encoder_hidden_states_mask": _text_mask,
    "pooled_projections": _pooled,
    "img_ids": _ids,
    "txt_ids": _ids,
    "guidance": _guidance,
    "class_labels": _classes,
    "added_cond_kwargs": _added,
    "controlnet_cond": _control,
    "original_size": _pair,
    "target_size": _pair,
    "crop_coords": _pair,
    "proj_embedding": _embedding,
}
"""Parameter's name → how it is planned."""
