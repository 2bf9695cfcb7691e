"""What is asked of a bundle in words, an image or a sound, as the inputs of its context and the
prompt of its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.core.tensors import PREFIX, names_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.processing.picture_kinds import Picture
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Asked", "asked", "beginning", "begun"]

_IMAGE, _SOUND, _TEXT = "pixel_values", "input_features", "input_ids"
_MASKS = {_IMAGE: "pixel_mask", _TEXT: "attention_mask"}
_TYPES = "token_type_ids"


class Asked(NamedTuple):
    """Inputs of one context, and the prompt.

    Attributes:
        inputs: by name.
        prompt: ids, or None for the bundle's own beginning.
        apart: the prompt is no part of the answer's text.
    """

    inputs: dict[str, NDArray[Any]]
    prompt: list[int] | None
    apart: bool = False

    @property
    def said(self) -> list[int]:
        """What the answer's text begins with."""
        return [] if self.apart else self.prompt or []


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
        text: what an encoder of texts reads; of a model whose prompts hold places for an image,
            what is asked about it; else what the answer begins with.
        image, audio: files.

    Raises:
        InputError: the model takes something else, or something more; or a file that can't be
            read.
    """
    names = names_of(session.stages["context"].inputs) if session.split else ()
    form = processor.prompt_form
    if form is None:
        processor.require_no_places()
    made = _seen_and_heard(processor, names, image, audio)
    prompt: list[int] | None = None
    whole = _TEXT in names and not any(name.startswith(PREFIX) for name in names)
    if text is not None and form is not None and whole:
        made[_TEXT] = np.array([form.ids(processor.words, text)], np.int64)
        made |= {_MASKS[_TEXT]: np.ones_like(made[_TEXT]), _TYPES: np.zeros_like(made[_TEXT])}
    elif text is not None and form is not None:
        first, prompt = begun(session, processor, text)
        made |= first
    elif text is not None and _TEXT in names:
        made[_TEXT], mask = processor.texts(text)
        made |= {_MASKS[_TEXT]: mask, _TYPES: np.zeros_like(mask)}
    elif text is not None:
        prompt = beginning(session, processor, text)
    missing = [name for name in names if name not in made]
    if missing or not names:
        raise _missing(missing, names)
    dtypes = {spec.name: spec.dtype for spec in session.inputs}
    inputs = {name: made[name].astype(dtypes[name]) for name in names}
    return Asked(inputs, prompt, apart=form is not None)


def _seen_and_heard(
    processor: Processor, names: Sequence[str], image: str | Path | None, audio: str | Path | None
) -> dict[str, NDArray[Any]]:
    """Inputs of an image and of a sound."""
    made: dict[str, NDArray[Any]] = {}
    if image is not None:
        picture = processor.picture(image)
        pixels = next(iter(picture.inputs))
        _require(pixels in names, "image", names)
        _require_places(processor, picture)
        made |= picture.inputs
        if _MASKS[_IMAGE] in names:
            shape = picture.inputs[pixels].shape
            made[_MASKS[_IMAGE]] = np.ones(shape[:1] + shape[2:], np.int64)
    if audio is not None:
        _require(_SOUND in names, "audio", names)
        made[_SOUND] = _features(processor, audio)
    return made


def _require_places(processor: Processor, picture: Picture) -> None:
    """Refuse an image that the places of prompts are not for.

    Raises:
        InputError: it is cut into other tiles or patches than the one of the export.
    """
    form, kind, pixels = processor.prompt_form, processor.kind, processor.pixels
    if form is None:
        return
    if form.sizes is not None and len(form.sizes) != 1:
        raise InputError(
            "prompts of the model have places for several images",
            got="one", expected=len(form.sizes),
            do="Make the inputs with the model's own processor, and call session.encode and "
            "crossfuse.runtime.generate",
        )  # fmt: skip
    own = kind.layout(pixels, picture.height, picture.width)
    if not own:
        return
    if form.sizes is None:
        raise InputError(
            "the bundle doesn't say for which images its prompts have places",
            got=kind.words(own), do="Export the model again with this version of crossfuse",
        )  # fmt: skip
    height, width = form.sizes[0]
    known = kind.layout(pixels, height, width)
    if own != known:
        raise InputError(
            "the image is cut otherwise than the one that the model was exported with, and the "
            "places in its prompts are for that",
            got=f"{kind.words(own)}, of {picture.width}×{picture.height} pixels",
            expected=f"{kind.words(known)}, as of {width}×{height} pixels",
            do="Give an image of about those proportions, or export the model again with one of "
            "this image's (--image, or image=)",
        )


def begun(
    session: Session, processor: Processor, text: str
) -> tuple[dict[str, NDArray[Any]], list[int]]:
    """Inputs of the first tokens of a prompt around a text, and the ids that follow them.

    Args:
        session: of a bundle whose first tokens are inputs of the context.
        processor: of the same bundle, with the form of its prompts.
        text: what is asked; or a whole prompt, with the mark of an image.

    Raises:
        InputError: a bundle that doesn't decode, or a prompt of another form.
    """
    form = processor.prompt_form
    if form is None or session.decode is None:
        raise InputError(
            "the bundle has no step stage", do="Export the model again: that says what prevents it"
        )
    specs = {spec.name: spec for spec in session.stages["context"].inputs}
    ids = form.ids(processor.words, text)
    return form.parts(ids, processor.places, specs, session.decode.tokens)


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


_PATCHES = "flattened_patches"
_OF_IMAGES = (_PATCHES, "pixel_attention_mask", "image_grid_thw", "image_sizes")
_FLAGS = {"text": _TEXT, "image": _IMAGE, "audio": _SOUND}


def _require(takes: bool, given: str, names: Sequence[str]) -> None:
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
    flags |= dict.fromkeys(_OF_IMAGES, "image")
    flags |= {name: "text" for name in names if name.startswith(PREFIX)}
    flags |= {_MASKS[name]: flag for flag, name in _FLAGS.items() if name in names & _MASKS.keys()}
    if _PATCHES in names:
        flags[_MASKS[_TEXT]] = "image"
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
