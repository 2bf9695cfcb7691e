"""How a model of ``transformers`` chooses tokens: its ``generation_config.json``, and what the
``generate`` of its class adds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.core.checkpoint_folder import read_json
from crossfuse.core.tensors import MEDIAN_WIDTH
from crossfuse.export.sources.huggingface.input_plan import text_config

if TYPE_CHECKING:
    from torch import nn

__all__ = ["generation_settings"]

_OF_THE_LIBRARY = ("_", "cache_", "output_", "return_", "transformers_", "use_cache")
"""How names begin that say how the library computes and what it returns."""

_FILE = "generation_config.json"
_CHOOSING = ("return_timestamps",)
"""Names of these that say what is chosen all the same."""


def generation_settings(model: nn.Module, folder: Path | None = None) -> dict[str, Any]:
    """The settings that differ from the library's own, as plain data; none of a model that
    generates nothing.

    Args:
        model: of the library.
        folder: of its checkpoint. What its file says beyond the library's own settings, such as
            the tokens of languages, is left out by the library where the file was made of the
            model's configuration; it counts all the same.
    """
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return {}
    kept = {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None and _counts(name)
    }
    kept = _beyond(config, folder) | kept
    if getattr(model.config, "model_type", None) == "blip":
        kept |= _captions(text_config(model.config))
    width = getattr(model.config, MEDIAN_WIDTH, None)
    if width is not None:
        kept[MEDIAN_WIDTH] = width
    return {name: value for name, value in kept.items() if _is_plain(value)}


def _counts(name: str) -> bool:
    """Whether a setting may say which tokens come."""
    return name in _CHOOSING or not name.startswith(_OF_THE_LIBRARY)


def _beyond(config: Any, folder: Path | None) -> dict[str, Any]:
    """Settings of a checkpoint's file that the library has no field for."""
    if folder is None or not (folder / _FILE).is_file():
        return {}
    known = type(config)().to_dict()
    return {
        name: value
        for name, value in read_json(folder / _FILE).items()
        if value is not None and name not in known and _counts(name)
    }


def _captions(config: Any) -> dict[str, Any]:
    """BLIP's classes begin with one token of the text's and end with another."""
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.sep_token_id,
        "pad_token_id": config.pad_token_id,
    }


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
