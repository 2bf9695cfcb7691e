"""The files of a checkpoint's processor, looked at before any library reads them.

Beside configurations and weights a folder holds vocabularies, templates and the settings of a
tokenizer, of an image processor and others. Some settings name further files or models, which a
library may open:

1. Every file, in folders inside too, is in the folder, or a blob of the same repository in a hub's
   cache.
2. No setting names a file that is not a plain name, and none a model that turns sounds into tokens.
3. No setting asks for another repository's code.
"""

from __future__ import annotations

from pathlib import Path

from crossfuse.core.checkpoint_folder import (
    entries_of,
    read_json,
    require_inside,
    require_own_code,
)
from crossfuse.errors import InputError

__all__ = [
    "ASIDE",
    "IMAGES",
    "NO_ID_FROM",
    "PARTS",
    "PLACES",
    "PREPROCESSOR",
    "PROCESSOR",
    "PROMPTS",
    "SOUNDS",
    "TOKENIZER",
    "TOKENIZER_SETTINGS",
    "has_processor",
    "require_own_processor",
]

TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
PARTS = (TOKENIZER, TOKENIZER_SETTINGS, PREPROCESSOR, PROCESSOR)
"""Files of a processor that a bundle may hold."""

PLACES = "placeholder_token_ids"
"""The entry of a bundle's tokenizer settings that names tokens in whose places of a prompt a model
puts what it made of an image or a sound."""

PROMPTS = "prompts"
"""The entry of a bundle's tokenizer settings that says how a prompt with places is written around a
text."""

ASIDE, NO_ID_FROM = "pieces_aside", "no_id_from"
"""Entries of a bundle's tokenizer settings, for texts that one vocabulary cuts and another numbers:
what stands before pieces that no text is cut into, among which the unknown is looked up; and from
which number on one stands for the unknown."""

IMAGES, SOUNDS = "image_processor", "feature_extractor"
"""How libraries call the parts of a processor that prepare images and sounds."""


_SETTINGS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
_WORDS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_NEVER_READ = ("special_tokens_map_file",)
"""Entries with a file's name that libraries write and don't read."""

_SOUND_TOKENS = ("audio_tokenizer", "audio_tokenizer_config.json")
_MOST_FILES = 10_000


def has_processor(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a processor, or a part of one."""
    return any((folder / name).is_file() for name in (*_SETTINGS, *_WORDS))


def require_own_processor(folder: Path) -> None:
    """Refuse a processor that leads out of its folder.

    Raises:
        InputError: naming the file or entry.
    """
    for count, path in enumerate(sorted(folder.rglob("*"))):
        if count >= _MOST_FILES:
            raise InputError("the checkpoint's folder holds too many files", where=folder)
        require_inside(path, folder)
    if (folder / _SOUND_TOKENS[1]).exists():
        raise _another_model(folder / _SOUND_TOKENS[1])
    for name in _SETTINGS:
        if (folder / name).is_file():
            _require_own_settings(folder / name)


def _require_own_settings(path: Path) -> None:
    settings = read_json(path)
    require_own_code(settings, path)
    for key, value in entries_of(settings):
        if key == _SOUND_TOKENS[0] and value is not None:
            raise _another_model(path)
        named = key.endswith("_file") and key not in _NEVER_READ and isinstance(value, str)
        if named and (Path(value).name != value or ":" in value or "\\" in value):
            raise InputError(
                "the processor's settings name a file outside of the folder",
                where=f"{path}, {key}",
                got=repr(value),
                expected="a file's plain name",
                do="Take the entry out; the library then finds its own files",
            )


def _another_model(where: Path) -> InputError:
    return InputError("the processor needs another model, which is not loaded", where=where)
