"""A checkpoint's own processor: what its publisher turned texts, images, sounds and videos into
inputs with.

Its files are read from the checkpoint's folder alone, after a look at where they lead, and without
code that comes with them unless that is trusted. A part that can't be loaded here (one for videos
needs torchvision, say) is left out, so that the others serve.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from crossfuse.core.checkpoint_folder import CONFIG, read_json
from crossfuse.core.foreign import cause_of
from crossfuse.core.processor_files import has_processor, require_own_processor
from crossfuse.errors import InputError

__all__ = ["KINDS", "NoProcessorError", "Processor", "as_processor", "load_processor", "quietly"]

KINDS = ("images", "text", "videos", "audio")
"""What processors read, by the library's names of their arguments."""

_LOG = logging.getLogger(__name__)

_KIND_OF_PART = {
    "tokenizer": "text",
    "image_processor": "images",
    "feature_extractor": "audio",
    "audio_processor": "audio",
    "video_processor": "videos",
}
_LOADERS = {
    "tokenizer": "AutoTokenizer",
    "image_processor": "AutoImageProcessor",
    "feature_extractor": "AutoFeatureExtractor",
    "audio_processor": "AutoFeatureExtractor",
    "video_processor": "AutoVideoProcessor",
}
_MAY_BE_ABSENT = ("image_processor", "video_processor")
"""Parts without which a processor is put together."""

_SETTINGS = {
    "tokenizer": "tokenizer_config.json",
    "image_processor": "preprocessor_config.json",
    "feature_extractor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}
_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class NoProcessorError(Exception):
    """The checkpoint has no processor that can be used; the text says why.

    Args:
        text: why.
        absent: there is none at all.
    """

    def __init__(self, text: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.absent = absent


@dataclass(frozen=True)
class Processor:
    """A processor, or a tokenizer, image processor or feature extractor alone, or several of them.

    Attributes:
        call: the library's object; None where each part is called by itself.
        parts: its parts by the library's names; one that stands alone is its own part.
        absent: parts that the checkpoint has and that can't be loaded here → why.
    """

    call: Any
    parts: Mapping[str, Any]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it reads, of `KINDS`."""
        found = {_KIND_OF_PART[name] for name in self.parts}
        return tuple(kind for kind in KINDS if kind in found)

    @property
    def is_part(self) -> bool:
        """It stands alone, and takes what it reads as its first argument."""
        return self.call is not None and any(p is self.call for p in self.parts.values())

    @property
    def words(self) -> Any:
        """Its tokenizer, or None."""
        return self.parts.get("tokenizer")

    @property
    def rate(self) -> int | None:
        """Samples of sound per second that it expects, where it hears."""
        heard = self.parts.get("feature_extractor") or self.parts.get("audio_processor")
        found = getattr(heard, "sampling_rate", None)
        return int(found) if isinstance(found, int | float) and found > 0 else None

    def alone(self, kind: str) -> Processor:
        """The part for a kind, as a processor of its own."""
        name = next(part for part in self.parts if _KIND_OF_PART[part] == kind)
        return Processor(self.parts[name], {name: self.parts[name]})

    def why_not(self, kind: str) -> str | None:
        """Why it doesn't read a kind although the checkpoint has a part for it."""
        return next((why for part, why in self.absent.items() if _KIND_OF_PART[part] == kind), None)


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Processor:
    """The processor in a checkpoint's folder.

    Args:
        folder: with a checkpoint that `crossfuse.core.checkpoint_folder` has let pass.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        NoProcessorError: there is none, or it can't be used.
    """
    import transformers

    if not has_processor(folder):
        raise NoProcessorError("the checkpoint's folder holds no processor", absent=True)
    try:
        require_own_processor(folder)
    except InputError as error:
        raise NoProcessorError(str(error)) from error
    given = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    with quietly():
        try:
            loader: Any = transformers.AutoProcessor
            found = as_processor(loader.from_pretrained(str(folder), **given))
            return _parts_alone(transformers, folder, given) if found.is_part else found
        except Exception as error:  # noqa: BLE001 -- the library's code and its dependencies'
            first = error
        try:
            return _assembled(transformers, folder, given)
        except Exception as error:  # noqa: BLE001 -- as above
            _LOG.debug("put together: %s", cause_of(error))
            raise NoProcessorError(f"its processor can't be loaded: {cause_of(first)}") from first


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's warnings, which speak of what is settled here."""
    from transformers.utils import logging as of_the_library

    verbosity = of_the_library.get_verbosity()
    of_the_library.set_verbosity(40)  # errors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_the_library.set_verbosity(verbosity)


def as_processor(loaded: Any) -> Processor:
    """A processor of ``transformers`` that was loaded, with its parts.

    Raises:
        InputError: it is none.
    """
    import transformers

    if isinstance(loaded, transformers.ProcessorMixin):
        parts = {name: getattr(loaded, name, None) for name in _KIND_OF_PART}
        return Processor(loaded, {name: part for name, part in parts.items() if part is not None})
    kinds = (
        ("tokenizer", transformers.PreTrainedTokenizerBase),
        ("image_processor", transformers.BaseImageProcessor),
        ("feature_extractor", transformers.SequenceFeatureExtractor),
        ("video_processor", transformers.BaseVideoProcessor),
    )
    for name, kind in kinds:
        if isinstance(loaded, kind):
            return Processor(loaded, {"video_processor" if _reads_frames(loaded) else name: loaded})
    raise InputError(
        "it is no processor",
        got=type(loaded).__name__,
        expected="a processor, tokenizer, image processor or feature extractor of transformers",
    )


def _reads_frames(loaded: Any) -> bool:
    """An image processor that takes videos, as VideoMAE's does: it needs no torchvision."""
    preprocess = getattr(loaded, "preprocess", None)
    return preprocess is not None and "videos" in inspect.signature(preprocess).parameters


def _assembled(transformers: Any, folder: Path, given: dict[str, Any]) -> Processor:
    """The processor of its parts, without those of `_MAY_BE_ABSENT` that can't be loaded."""
    made_by = _processor_class(transformers, folder)
    if made_by is None:
        return _parts_alone(transformers, folder, given)
    arguments, absent = [], {}
    for name in made_by.get_attributes():
        try:
            arguments.append(
                getattr(transformers, _LOADERS[name]).from_pretrained(str(folder), **given)
            )
        except Exception as error:
            if name not in _MAY_BE_ABSENT:
                raise
            absent[name] = cause_of(error)
            arguments.append(_LeftOut())
    settings, _ = made_by.get_processor_dict(str(folder), local_files_only=True)
    whole = _unchecked(made_by).from_args_and_dict(arguments, settings)
    found = as_processor(whole)
    parts = {name: part for name, part in found.parts.items() if name not in absent}
    return Processor(whole, parts, absent)


def _parts_alone(transformers: Any, folder: Path, given: dict[str, Any]) -> Processor:
    """The parts that can be loaded, of a folder without a processor of several."""
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, loader in _LOADERS.items():
        try:
            loaded = getattr(transformers, loader).from_pretrained(str(folder), **given)
        except Exception as error:  # noqa: BLE001 -- the library's code and its dependencies'
            absent[name] = cause_of(error)
        else:
            kind = next(iter(as_processor(loaded).parts))
            found.setdefault(kind, loaded)
    if not found:
        raise NoProcessorError("none of its parts can be loaded")
    call = next(iter(found.values())) if len(found) == 1 else None
    absent = {name: why for name, why in absent.items() if _is_there(folder, name)}
    return Processor(call, found, absent)


def _is_there(folder: Path, part: str) -> bool:
    """Whether a folder has the settings of a part."""
    return part in _SETTINGS and (folder / _SETTINGS[part]).is_file()


def _processor_class(transformers: Any, folder: Path) -> Any:
    """The class of the processor that a folder's settings name, or its model's type; or None."""
    for file in _NAMED_IN:
        if (folder / file).is_file():
            name = read_json(folder / file).get("processor_class")
            if isinstance(name, str) and hasattr(transformers, name):
                return getattr(transformers, name)
    from transformers.models.auto import processing_auto

    names: Any = getattr(processing_auto, "PROCESSOR_MAPPING_NAMES", {})
    name = names.get(str(read_json(folder / CONFIG).get("model_type")))
    name = name[0] if isinstance(name, tuple | list) else name
    return getattr(transformers, name, None) if isinstance(name, str) else None


def _unchecked(made_by: Any) -> Any:
    """The class, which takes a stand-in for a part."""
    unchecked = {
        "check_argument_for_proper_class": lambda self, name, part: type(part),
        "__repr__": object.__repr__,  # the library's asks each part for its settings
    }
    return type(made_by.__name__, (made_by,), unchecked)


class _LeftOut:
    """Stands for a part that can't be loaded; it is never called."""

    model_input_names: ClassVar[list[str]] = []
