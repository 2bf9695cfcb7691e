"""Weights of ``transformers`` checkpoints for the zoo: safetensors only, mapped name by name.

Each entry of a mapping is a pattern of the checkpoint's names and the zoo's name for it. A tensor
that the model needs and the checkpoint lacks, or has in another shape, is an error; one that is
there and not known is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossfuse.core.checkpoint_folder import CONFIG, read_json, weight_files
from crossfuse.core.checkpoint_weights import require_weights, weights_about
from crossfuse.errors import InputError
from crossfuse.models import clip, qformer, vilt
from crossfuse.models.checkpoint_names import (
    CLIP_RULES,
    QFORMER_RULES,
    VILT_RULES,
    Rules,
    translate,
)
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["Loaded", "checkpoint_spec", "load_module"]


@dataclass(frozen=True)
class _Format:
    """How one system reads checkpoints: configuration, names, and names of parts that it does not
    have."""

    configure: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]
    build: Callable[[Any], nn.Module]
    spec_of: Callable[[Any, Any, dict[str, int]], ModelSpec]
    example: dict[str, int]
    rules: Rules
    ignored: str


@dataclass(frozen=True)
class Loaded:
    """A module with a checkpoint's weights.

    Attributes:
        module: in eval mode, float32.
        config: its configuration.
        missing: weights that the checkpoint lacks, or has in another shape; they are random, from a
            fixed seed.
        left_over: the checkpoint's tensors that the module has no place for.
    """

    module: nn.Module
    config: Any
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()


def checkpoint_spec(name: str, folder: str, *, allow_missing: bool = False) -> ModelSpec:
    """The export spec of a zoo system with a checkpoint's weights.

    Raises:
        InputError: as `load_module`.
    """
    fmt = _format(name)
    loaded = load_module(name, folder, allow_missing=allow_missing)
    config = loaded.config
    spec = fmt.spec_of(
        loaded.module, config, fmt.example | {"text": min(fmt.example["text"], config.text_length)}
    )
    return replace(spec, about=weights_about(loaded.missing, loaded.left_over))


def load_module(name: str, folder: str, *, allow_missing: bool = False) -> Loaded:
    """The module and its configuration.

    Args:
        name: of the system.
        folder: with ``config.json`` and safetensors files.
        allow_missing: let weights that the checkpoint lacks, or has in another shape, stay random
            (from a fixed seed).

    Raises:
        InputError: a system without checkpoints, no configuration or safetensors file in the
            folder, a configuration that the system doesn't cover, tensors that are missing, have
            other shapes, or whose names are not known.
    """
    fmt = _format(name)
    path = Path(folder)
    settings = read_json(path / CONFIG)
    tensors = _read_tensors(path)
    config = fmt.configure(settings, tensors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = fmt.build(config)
    needed = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    left_over: list[str] = []
    for key, tensor in tensors.items():
        target = translate(key, fmt.rules)
        if target in needed:
            state[target] = tensor.float()
        elif not re.match(fmt.ignored, key):
            left_over.append(key)
    missing = sorted(set(needed) - set(state))
    shapes = {
        key: (tuple(state[key].shape), shape) for key, shape in needed.items() if key in state
    }
    other = {key: pair for key, pair in shapes.items() if pair[0] != pair[1]}
    require_weights(
        path,
        f"the checkpoint doesn't fit {name!r}",
        missing,
        other,
        left_over,
        allow_missing=allow_missing,
    )
    module.load_state_dict(
        {key: tensor for key, tensor in state.items() if key not in other}, strict=False
    )
    return Loaded(
        module.eval(), config, tuple(sorted([*missing, *other])), tuple(sorted(left_over))
    )


def _format(name: str) -> _Format:
    formats = {
        "clip": _Format(
            _clip_config,
            clip.CLIP,
            clip.spec_of,
            clip.EXAMPLES["published"],
            CLIP_RULES,
            ignored=r".*position_ids$",
        ),
        "vilt": _Format(
            _vilt_config,
            vilt.ViLT,
            vilt.spec_of,
            vilt.EXAMPLES["published"],
            VILT_RULES,
            ignored=r"(classifier|mlm_score|rank_output)\.|.*(position|token_type)_ids$",
        ),
        "qformer": _Format(
            _qformer_config,
            qformer.QFormer,
            qformer.spec_of,
            qformer.EXAMPLES["published"],
            QFORMER_RULES,
            ignored=r"(vision_model|language_model|(language|vision|text)_projection|itm_head)\."
            r"|.*position_ids$",
        ),
    }
    if name not in formats:
        raise InputError(
            "this system loads no checkpoints", got=repr(name), expected=" or ".join(formats)
        )
    return formats[name]


def _clip_config(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> clip.Config:
    text, vision = settings.get("text_config", {}), settings.get("vision_config", {})
    activations = {text.get("hidden_act", "quick_gelu"), vision.get("hidden_act", "quick_gelu")}
    if len(activations) != 1 or not activations <= {"quick_gelu", "gelu"}:
        raise InputError(
            "unknown activation", got=", ".join(sorted(activations)), expected="quick_gelu or gelu"
        )
    epsilons = {text.get("layer_norm_eps", 1e-5), vision.get("layer_norm_eps", 1e-5)}
    if len(epsilons) != 1:
        raise InputError("the towers' layer norms differ", got=epsilons, expected="one epsilon")
    base = clip.Config()
    return clip.Config(
        text_width=text.get("hidden_size", base.text_width),
        text_layers=text.get("num_hidden_layers", base.text_layers),
        text_heads=text.get("num_attention_heads", base.text_heads),
        text_hidden=text.get("intermediate_size", base.text_hidden),
        vocabulary=text.get("vocab_size", base.vocabulary),
        text_length=text.get("max_position_embeddings", base.text_length),
        eot_token=text.get("eos_token_id", base.eot_token),
        vision_width=vision.get("hidden_size", base.vision_width),
        vision_layers=vision.get("num_hidden_layers", base.vision_layers),
        vision_heads=vision.get("num_attention_heads", base.vision_heads),
        vision_hidden=vision.get("intermediate_size", base.vision_hidden),
        image_size=vision.get("image_size", base.image_size),
        patch_size=vision.get("patch_size", base.patch_size),
        projection=settings.get("projection_dim", base.projection),
        eps=epsilons.pop(),
        activation=activations.pop(),
    )


def _vilt_config(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> vilt.Config:
    _require_gelu(settings)
    base = vilt.Config()
    return vilt.Config(
        width=settings.get("hidden_size", base.width),
        layers=settings.get("num_hidden_layers", base.layers),
        heads=settings.get("num_attention_heads", base.heads),
        hidden=settings.get("intermediate_size", base.hidden),
        vocabulary=settings.get("vocab_size", base.vocabulary),
        text_length=settings.get("max_position_embeddings", base.text_length),
        image_size=settings.get("image_size", base.image_size),
        patch_size=settings.get("patch_size", base.patch_size),
        eps=settings.get("layer_norm_eps", base.eps),
        modality_types=settings.get("modality_type_vocab_size", base.modality_types),
    )


def _qformer_config(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> qformer.Config:
    inner = settings.get("qformer_config", settings)
    _require_gelu(inner)
    base = qformer.Config()
    queries = tensors.get("query_tokens")
    return qformer.Config(
        width=inner.get("hidden_size", base.width),
        layers=inner.get("num_hidden_layers", base.layers),
        heads=inner.get("num_attention_heads", base.heads),
        hidden=inner.get("intermediate_size", base.hidden),
        image_width=inner.get("encoder_hidden_size", base.image_width),
        queries=settings.get("num_query_tokens", base.queries)
        if queries is None
        else queries.shape[1],
        cross_every=inner.get("cross_attention_frequency", base.cross_every),
        vocabulary=inner.get("vocab_size", base.vocabulary),
        text_length=inner.get("max_position_embeddings", base.text_length),
        eps=inner.get("layer_norm_eps", base.eps),
        text="embeddings.word_embeddings.weight" in tensors,
    )


def _require_gelu(settings: Mapping[str, Any]) -> None:
    if settings.get("hidden_act", "gelu") != "gelu":
        raise InputError("unknown activation", got=settings["hidden_act"], expected="gelu")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"the safetensors file can't be read: {error}", where=path) from error
    return tensors
