"""`Processor`: texts, images and sounds to a bundle's inputs, and ids to text, by the files of the
checkpoint's processor that the bundle holds; without PyTorch and transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from crossfuse.bundle.staging import unreplaced
from crossfuse.bundle.store import Bundle
from crossfuse.core.foreign import door
from crossfuse.core.json_reader import Origin, decode
from crossfuse.core.media_files import on_white, read_image, read_sound
from crossfuse.core.processor_files import (
    IMAGES,
    PARTS,
    PLACES,
    PREPROCESSOR,
    PROCESSOR,
    PROMPTS,
    SOUNDS,
    TOKENIZER,
    TOKENIZER_SETTINGS,
)
from crossfuse.errors import BundleError, InputError
from crossfuse.runtime.processing.log_mel import LogMel
from crossfuse.runtime.processing.picture_kinds import Picture, PictureKind, kind_of
from crossfuse.runtime.processing.pixels import Pixels, in_full, pixels_of
from crossfuse.runtime.processing.prompt_form import PromptForm
from crossfuse.runtime.processing.words import Pieces, Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Processor", "load_processor"]

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Processor:
    """What prepares a bundle's inputs, and writes text of its ids.

    Attributes:
        where: the bundle's folder.
        files: content of the files that it holds, by name.
    """

    where: Path
    files: Mapping[str, bytes] = field(repr=False)

    @cached_property
    def words(self) -> Words:
        """The tokenizer.

        Raises:
            BundleError: the bundle holds none, or one that can't be read.
            PackageError: the package tokenizers is not installed.
        """
        if TOKENIZER not in self.files:
            raise self._lacks("tokenizer", TOKENIZER)
        return Words(self.files[TOKENIZER], self._words_settings(), self.where / TOKENIZER)

    @cached_property
    def prompt_form(self) -> PromptForm | None:
        """How prompts with places for an image are written; None where the bundle doesn't say.

        Raises:
            BundleError: not so that it can be read.
        """
        given = self._words_settings().get(PROMPTS)
        if given is None:
            return None
        where = Origin("the form of prompts", self.where / TOKENIZER_SETTINGS, BundleError)
        return decode(PromptForm, given, where)

    @property
    def places(self) -> frozenset[int]:
        """Ids that stand for an image or a sound in a prompt."""
        found = self._words_settings().get(PLACES)
        numbers = found.values() if isinstance(found, dict) else ()
        return frozenset(number for number in numbers if isinstance(number, int))

    def _words_settings(self) -> dict[str, Any]:
        return self._json(TOKENIZER_SETTINGS) if TOKENIZER_SETTINGS in self.files else {}

    def require_no_places(self) -> None:
        """Refuse a model whose prompts hold places for images or sounds, which its own processor
        writes there: without them it would answer to the text alone.

        Raises:
            InputError: naming the tokens of these places.
        """
        places = self._words_settings().get(PLACES)
        if places:
            raise InputError(
                "the model's prompts hold places for an image or a sound, which are not written "
                "here",
                where=", ".join(places) if isinstance(places, dict) else PLACES,
                do="Make the ids with the model's own processor, and call session.encode and "
                "crossfuse.runtime.generate",
            )

    @property
    def pixels(self) -> Pixels:
        """How images are prepared.

        Raises:
            BundleError: the bundle doesn't say, or not so that it can be read.
            InputError: an image processor that is not known here.
        """
        return self._of_images[0]

    @property
    def kind(self) -> PictureKind:
        """What the image processor does.

        Raises:
            BundleError, InputError: as of `pixels`.
        """
        return self._of_images[1]

    @cached_property
    def _of_images(self) -> tuple[Pixels, PictureKind]:
        given = self._part(IMAGES)
        if given is None:
            raise self._lacks("settings for images", PREPROCESSOR)
        found = self._decoded(Pixels, in_full(given))
        return found, kind_of(found, given)

    @cached_property
    def log_mel(self) -> LogMel:
        """How sounds are prepared.

        Raises:
            BundleError: the bundle doesn't say, or not so that it can be read, or not so that it
                is known here.
        """
        given = self._part(SOUNDS)
        if given is None:
            raise self._lacks("settings for sounds", PREPROCESSOR)
        return self._decoded(LogMel, given)

    @door
    def texts(self, *texts: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of texts and their mask, as an encoder takes them: ``[texts, tokens]`` int64 both.

        Raises:
            InputError: no text, or one without tokens.
        """
        return self.words.rows(texts)

    @door
    def picture(self, image: Any) -> Picture:
        """One image as the model takes it: inputs by name, and the size that it had.

        Args:
            image: a path, an image of Pillow's, or an array ``[height, width, 3]`` uint8.

        Raises:
            InputError: a file that can't be read, another array, or an image of a shape that the
                image processor has no use for.
        """
        read = read_image(Path(image)) if isinstance(image, str | Path) else image
        found = pixels_of(on_white(read) if hasattr(read, "convert") else read)
        height, width = found.shape[:2]
        return Picture(self.kind.made(self.pixels, found), height, width)

    @door
    def images(self, *images: Any) -> NDArray[np.float32]:
        """Images as the model takes them: ``[images, 3, height, width]`` float32; of an image
        processor that cuts them, tiles or patches in place of that, as the library gives them.

        Args:
            images: as of `picture`.

        Raises:
            InputError: as of `picture`; or images that come out at different sizes.
        """
        made = [next(iter(self.picture(image).inputs.values())) for image in images]
        if len({one.shape for one in made}) != 1:
            told = (f"{list(one.shape)}" for one in made)
            raise InputError(
                "images in one batch need one size",
                got=", ".join(told) or "none",
                do="Give them one by one",
            )
        return np.concatenate(made)

    @door
    def sound(self, sound: Any) -> NDArray[np.float32]:
        """A sound as samples ``[time]`` float32 at the rate that the model takes.

        Args:
            sound: a WAV or NPY file, or samples at that rate.

        Raises:
            InputError: a file that can't be read.
        """
        if isinstance(sound, str | Path):
            return read_sound(Path(sound), self.log_mel.sampling_rate)
        return np.asarray(sound)

    @door
    def sounds(self, *sounds: Any) -> NDArray[np.float32]:
        """Features of sounds, each cut or padded to what the model hears at once: ``[sounds, bands,
        frames]`` float32.

        Raises:
            InputError: a file that can't be read, or other arrays.
        """
        if not sounds:
            raise InputError("there is no sound")
        return np.stack([self.log_mel(self.sound(sound)) for sound in sounds])

    @door
    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of ids, without tokens that are no text."""
        return self.words.decode(ids)

    def pieces(self) -> Pieces:
        """Text of ids that come one after the other."""
        return Pieces(self.words)

    def _part(self, name: str) -> dict[str, Any] | None:
        """Settings of a part: apart, or of several in one file."""
        if PROCESSOR in self.files:
            found = self._json(PROCESSOR).get(name)
            return found if isinstance(found, dict) else None
        if PREPROCESSOR not in self.files:
            return None
        given = self._json(PREPROCESSOR)
        return given if f"{name}_type" in given else None

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"the file is not valid JSON: {error}", where=self.where / name
            ) from error
        if not isinstance(found, dict):
            raise BundleError("the file holds no JSON object", where=self.where / name)
        return found

    def _decoded(self, kind: type[Settings], given: Mapping[str, Any]) -> Settings:
        name = PROCESSOR if PROCESSOR in self.files else PREPROCESSOR
        return decode(
            kind, given, Origin("the processor's settings", self.where / name, BundleError)
        )

    def _lacks(self, what: str, name: str) -> BundleError:
        return BundleError(
            f"the bundle holds no {what}",
            where=self.where / name,
            do="Export a checkpoint whose folder has a processor (hf:...) with this version of "
            "crossfuse; a tokenizer comes along where it can be written as tokenizer.json",
        )


@door
def load_processor(path: str | Path | Bundle) -> Processor:
    """The processor that a bundle holds. Sizes and hashes of its files are checked; each is parsed
    where it is first needed.

    Args:
        path: the bundle's folder, or the open bundle.

    Raises:
        BundleError: no bundle, or a damaged one.
    """

    def read(bundle: Bundle) -> Processor:
        names = [name for name in PARTS if name in bundle.manifest.files]
        paths = bundle.verified(names)
        files = {name: file.read_bytes() for name, file in zip(names, paths, strict=True)}
        bundle.require_unreplaced()
        return Processor(Path(str(path.path if isinstance(path, Bundle) else path)), files)

    return unreplaced(path, read)
