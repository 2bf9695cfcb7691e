"""What is asked of a bundle in words, an image or a sound, as the inputs of its context and the
prompt of its decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.core.tensors import names_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Asked", "asked", "beginning"]

_IMAGE, _SOUND, _TEXT = "pixel_values", "input_features", "input_ids"
_MASKS = {_IMAGE: "pixel_mask", _TEXT: "attention_mask"}
_TYPES = "token_type_ids"


class Asked(NamedTuple):
    """Inputs of one context, and the prompt.

    Attributes:
        inputs: by name.
        prompt: ids, or None for the bundle's own beginning.
    """

    inputs: dict[str, NDArray[Any]]
    prompt: list[int] | None


def asked(
    session: Session,
    processor: Processor,
    *,
    text: str | None = None,
    image: str | Path | None = None,
    audio: str | Path | None = None,
) -> Asked:
    """Prepare what a bundle of a Hugging Face model generates from.

    Args:
        session: of the bundle.
        processor: of the same bundle.
        text: what an encoder of texts reads; else what the answer begins with.
        image, audio: files.

    Raises:
        InputError: the model takes something else, or something more; or a file that can't be
            read.
    """
    names = names_of(session.stages["context"].inputs) if session.split else ()
    processor.require_no_places()
    made: dict[str, NDArray[Any]] = {}
    if image is not None:
        _require(_IMAGE in names, "image", names)
        made[_IMAGE] = processor.images(image)
        if _MASKS[_IMAGE] in names:
            made[_MASKS[_IMAGE]] = np.ones(
                made[_IMAGE].shape[:1] + made[_IMAGE].shape[2:], np.int64
            )
    if audio is not None:
        _require(_SOUND in names, "audio", names)
        made[_SOUND] = _features(processor, audio)
    reads = _TEXT in names
    if text is not None and reads:
        made[_TEXT], mask = processor.texts(text)
        made |= {_MASKS[_TEXT]: mask, _TYPES: np.zeros_like(mask)}
    missing = [name for name in names if name not in made]
    if missing or not names:
        raise _missing(missing, names)
    prompt = beginning(session, processor, text) if text is not None and not reads else None
    dtypes = {spec.name: spec.dtype for spec in session.inputs}
    return Asked({name: made[name].astype(dtypes[name]) for name in names}, prompt)


def _features(processor: Processor, audio: str | Path) -> NDArray[np.float32]:
    samples, log_mel = processor.sound(audio), processor.log_mel
    if len(samples) > log_mel.samples:
        raise InputError(
            "the sound is longer than the model hears at once",
            where=audio,
            got=f"{len(samples) / log_mel.sampling_rate:.1f} s",
            expected=f"at most {log_mel.chunk_length} s",
            do="Cut it; the bundle's settings name no tokens of time to go on from",
        )
    return log_mel(samples)[None]


def beginning(session: Session, processor: Processor, text: str) -> list[int]:
    """The prompt of an answer that begins with a text.

    Raises:
        BundleError: the bundle holds no tokenizer.
        PackageError: the package tokenizers is not installed.
    """
    about = session.generation
    starts = (about.get("decoder_start_token_id"), about.get("bos_token_id"))
    start = next((int(one) for one in starts if isinstance(one, int)), None)
    return [*([] if start is None else [start]), *processor.words.encode(text, special=False)]


_FLAGS = {"text": _TEXT, "image": _IMAGE, "audio": _SOUND}


def _require(takes: bool, given: str, names: tuple[str, ...]) -> None:
    if not takes:
        raise InputError(
            Advice("the model takes no {}", given),
            got=", ".join(names) or "no context inputs",
            expected=_FLAGS[given],
        )


def _missing(missing: list[str], given: tuple[str, ...]) -> InputError:
    names = set(given)
    if not names:
        return InputError(
            "the bundle has no context stage to generate from",
            do="Export a model that reads a context and writes tokens",
        )
    flags = {name: flag for flag, name in _FLAGS.items()}
    flags |= {_MASKS[name]: flag for flag, name in _FLAGS.items() if name in names & _MASKS.keys()}
    known = [flags[name] for name in missing if name in flags]
    if len(known) == len(missing):
        flag = known[0]
        return InputError(
            "the model needs more to generate from",
            got=f"no {', '.join(dict.fromkeys(known))}",
            do=Advice("Give {}", Said(f"--{flag}", f"{flag}=...")),
        )
    return InputError(
        "inputs of the model can't be prepared here",
        got=", ".join(name for name in missing if name not in flags),
        do="Make the arrays with the model's own processor, and call session.encode and "
        "crossfuse.runtime.generate",
    )
