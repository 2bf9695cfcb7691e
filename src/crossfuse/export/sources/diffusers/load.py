"""Load a model of ``diffusers``: the class that its configuration names, and weights from
safetensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.core.checkpoint_folder import (
    CONFIG,
    WeightNames,
    read_json,
    require_plain,
    weight_files,
)
from crossfuse.core.checkpoint_weights import require_weights
from crossfuse.core.foreign import cause_of
from crossfuse.core.requirements import needed
from crossfuse.core.text import brief
from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.load import Loaded

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_model", "weight_names"]

_STEM = "diffusion_pytorch_model"
_VARIANT = re.compile(rf"{_STEM}\.(\w+)\.safetensors")
_INDEX_VARIANT = re.compile(rf"{_STEM}\.safetensors\.index\.(\w+)\.json")


def load_model(folder: Path, *, allow_missing: bool = False) -> Loaded:
    """The model in a folder, in float32 and evaluation mode.

    Args:
        folder: with ``config.json`` and ``diffusion_pytorch_model.safetensors``, its index and
            parts, or the same of one variant (``.fp16.``).
        allow_missing: let weights that the checkpoint lacks, or has in another shape, stay random
            (from a fixed seed).

    Raises:
        InputError: no safetensors, files that lead elsewhere, a class that diffusers doesn't have,
            quantized weights, or weights that are missing or have other shapes.
    """
    with needed("diffusers", "a source of diffusers", InputError):
        import diffusers
    names, variant = weight_names(folder)
    require_plain(folder, names=names)
    weight_files(folder, names)
    settings = read_json(folder / CONFIG)
    made_by = _model_class(diffusers, settings, folder)
    try:
        model, info = _loaded(made_by, folder, variant)
    except Exception as error:  # the library's code
        text = brief(error) if str(error) else cause_of(error)
        raise InputError(f"the model can't be loaded: {text}", where=folder) from error
    shapes = {
        name: (tuple(got), tuple(expected))
        for name, got, expected in sorted(info["mismatched_keys"])
    }
    missing = sorted(set(info["missing_keys"]) - set(shapes))
    left_over = sorted(info["unexpected_keys"])
    what = f"the checkpoint doesn't fit {type(model).__name__}"
    require_weights(str(folder), what, missing, shapes, left_over, allow_missing=allow_missing)
    if missing or shapes:
        _fill(model, made_by, settings, {*missing, *shapes})
    model.eval().requires_grad_(False)
    return Loaded(model, tuple(sorted([*missing, *shapes])), tuple(left_over))


def weight_names(folder: Path) -> tuple[WeightNames, str | None]:
    """How a folder's weights are called, and their variant: the plain ones where they are there,
    else those of the folder's one variant."""
    plain = WeightNames(f"{_STEM}.safetensors", f"{_STEM}.safetensors.index.json")
    if any((folder / name).exists() for name in (plain.weights, plain.index)):
        return plain, None
    found = {
        match[1]
        for path in folder.iterdir()
        for match in [_VARIANT.fullmatch(path.name) or _INDEX_VARIANT.fullmatch(path.name)]
        if match is not None
    }
    if len(found) != 1:
        return plain, None
    variant = found.pop()
    names = WeightNames(
        f"{_STEM}.{variant}.safetensors", f"{_STEM}.safetensors.index.{variant}.json"
    )
    return names, variant


def _model_class(diffusers: Any, settings: Mapping[str, Any], folder: Path) -> Any:
    """The class that a configuration names.

    Raises:
        InputError: diffusers has no such model, or its weights are quantized.
    """
    name = settings.get("_class_name")
    made_by = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(made_by, type) and issubclass(made_by, diffusers.ModelMixin)):
        version = settings.get("_diffusers_version")
        raise InputError(
            f"diffusers {diffusers.__version__} has no such model",
            where=folder / CONFIG,
            got=f"_class_name {name!r}" + (f", saved by diffusers {version}" if version else ""),
            expected="a class of its models",
        )
    if settings.get("quantization_config") is not None:
        raise InputError(
            "the checkpoint's weights are quantized by a library of its own",
            where=f"{folder / CONFIG}, quantization_config",
            do="Save the model with plain weights (float32, float16 or bfloat16); a target's "
            "precision is chosen when it is built",
        )
    return made_by


def _loaded(made_by: Any, folder: Path, variant: str | None) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model, and what the library says about its weights."""
    import torch

    given: dict[str, Any] = {} if variant is None else {"variant": variant}
    # Without accelerate the library can do no other, and it refuses the word for these models.
    if getattr(made_by, "_keep_in_fp32_modules", None) is None:
        given["low_cpu_mem_usage"] = False
    with _quiet():
        model, info = made_by.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **given,
        )
    return model, info


def _fill(model: nn.Module, made_by: Any, settings: Mapping[str, Any], names: set[str]) -> None:
    """Give weights that the checkpoint lacks the numbers that a new model has, the same each time:
    the library leaves there what the memory held."""
    import torch

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = made_by.from_config(dict(settings)).state_dict()
    model.load_state_dict({name: new[name] for name in names}, strict=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Its words about weights say what our error and the manifest say."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
