"""What of a checkpoint's processor a bundle carries: plain JSON alone, as the library reads it.

The library's own reading of the files is written, not the files: what older files leave to
defaults is then said, and no entry that names code or other files comes along.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossfuse.core.foreign import cause_of
from crossfuse.core.processor_files import (
    IMAGES,
    PLACES,
    PREPROCESSOR,
    PROCESSOR,
    SOUNDS,
    TOKENIZER,
    TOKENIZER_SETTINGS,
)
from crossfuse.export.sources.huggingface.marian_words import marian_words
from crossfuse.export.sources.huggingface.processor import NoProcessorError, Processor

__all__ = ["carried"]

_LOG = logging.getLogger(__name__)
_OF_CODE = ("auto_map", "processor_class", "custom_pipelines")
_LONGEST = 1 << 31
_PLACES_OF = tuple(
    f"{kind}_token_{ending}" for kind in ("image", "video", "audio") for ending in ("id", "index")
)
_OF_TILES = ("patch_size", "num_image_tokens")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


def carried(
    processor: Processor | NoProcessorError, config: Any, folder: Path | None = None
) -> dict[str, str]:
    """Files for a bundle, by name.

    Args:
        processor: the checkpoint's, or why there is none.
        config: the model's configuration.
        folder: of the checkpoint, whose own files count where the library's tokenizer has no such
            form.

    Returns:
        content by name: of the tokenizer, where it can be written as ``tokenizer.json``, and of
        what prepares images and sounds.
    """
    found = _of_marian(config, folder)
    if isinstance(processor, NoProcessorError):
        return found
    words = processor.words
    if not found and hasattr(words, "backend_tokenizer"):
        found |= _of_tokenizer(words, _places(config))
    parts = {
        name: settings
        for name in (IMAGES, SOUNDS)
        if name in processor.parts and (settings := _settings(processor.parts[name])) is not None
    }
    if IMAGES in parts:
        parts[IMAGES] = _as_called(parts[IMAGES], processor.call)
    if len(parts) == 1:
        found[PREPROCESSOR] = _text(next(iter(parts.values())))
    elif parts:
        found[PROCESSOR] = _text(parts)
    return found


def _as_called(settings: dict[str, Any], call: Any) -> dict[str, Any]:
    """An image processor's settings with what the processor around it asks of it in each call, and
    with what only that one knows of tiles: how large their patches are, or how many tokens they
    become."""
    asks = getattr(call, "images_kwargs", None)
    for kind in type(call).__mro__ if not isinstance(asks, dict) else ():
        module = sys.modules.get(kind.__module__)
        told = vars(module).get(f"{kind.__name__}Kwargs") if module else None
        asks = asks or getattr(told, "_defaults", {}).get("images_kwargs")
    found = dict(settings)
    for name, value in (asks or {}).items():
        if name in settings and isinstance(value, bool | int | float | str):
            found[name] = value
    for name in _OF_TILES if "image_grid_pinpoints" in settings else ():
        value = getattr(call, name, None)
        if name not in found and isinstance(value, int):
            found[name] = value
    return found


def _places(config: Any) -> dict[str, int]:
    """Tokens of a prompt that stand for what was seen or heard, by their names."""
    found = {name: getattr(config, name, None) for name in _PLACES_OF}
    return {name: number for name, number in found.items() if isinstance(number, int)}


def _of_tokenizer(words: Any, places: Mapping[str, int]) -> dict[str, str]:
    try:
        tokenizer = json.loads(words.backend_tokenizer.to_str())
    except Exception as error:  # noqa: BLE001 -- the library's code
        _LOG.debug("the tokenizer has no JSON: %s", cause_of(error))
        return {}
    # What an earlier call asked for is no part of it.
    tokenizer["padding"] = tokenizer["truncation"] = None
    settings: dict[str, Any] = {
        "tokenizer_class": type(words).__name__,
        "clean_up_tokenization_spaces": bool(getattr(words, "clean_up_tokenization_spaces", False)),
    }
    if places:
        settings[PLACES] = dict(places)
    for name in _SPECIAL:
        token = getattr(words, name, None)
        if token is not None:
            settings[name] = str(token)
    longest = getattr(words, "model_max_length", None)
    if isinstance(longest, int) and longest < _LONGEST:
        settings["model_max_length"] = longest
    return {
        TOKENIZER: _compact(tokenizer),
        TOKENIZER_SETTINGS: _text(settings),
    }


def _of_marian(config: Any, folder: Path | None) -> dict[str, str]:
    if folder is None or getattr(config, "model_type", None) != "marian":
        return {}
    try:
        made = marian_words(folder)
    except Exception as error:  # noqa: BLE001 -- files of strangers, read by a library
        _LOG.debug("Marian's tokenizer can't be written: %s", cause_of(error))
        return {}
    if made is None:
        return {}
    tokenizer, settings = made
    return {TOKENIZER: _compact(tokenizer), TOKENIZER_SETTINGS: _text(settings)}


def _compact(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _settings(part: Any) -> dict[str, Any] | None:
    """The settings of a part; None where they have no JSON."""
    try:
        given = json.loads(part.to_json_string())
    except Exception as error:  # noqa: BLE001 -- the library's code
        _LOG.debug("%s has no JSON: %s", type(part).__name__, cause_of(error))
        return None
    return {
        name: value
        for name, value in given.items()
        if name not in _OF_CODE and not name.startswith("_")
    }


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"
