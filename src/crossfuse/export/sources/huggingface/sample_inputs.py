"""What a checkpoint's processor is given: the user's texts, images, sounds and videos, and small
made ones in place of what he doesn't give.

A sample is a batch of rows. To find out which axes of a model's inputs are dynamic, the same rows
are asked for again with one thing changed: more of them, longer texts, larger images, longer
sounds, more frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.media_files import read_image, read_sound, read_video
from crossfuse.errors import Advice, InputError, Said

__all__ = ["CHANGES", "Given", "Row", "changed", "companion", "made_row", "rows_of"]

CHANGES = ("rows", "text", "text a little", "text shorter", "height", "width", "sound", "frames")
"""What can be changed of a sample."""

_SENTENCE = "A photo of a small cat on a red mat."
_MORE = " Where is it?"
_IMAGE = (128, 192)
_FRAMES = 4
_RATE = 16000


@dataclass(frozen=True)
class Given:
    """What a user gives in place of made samples, each once or several times.

    Attributes:
        text: prompts, questions or captions.
        images, audio, videos: paths of files; images and frames may be Pillow's images or arrays,
            sounds may be arrays at the processor's own rate.
    """

    text: Sequence[str] = ()
    images: Sequence[Any] = ()
    audio: Sequence[Any] = ()
    videos: Sequence[Any] = ()

    def __bool__(self) -> bool:
        return bool(self.kinds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is given."""
        return tuple(kind for kind in ("images", "text", "videos", "audio") if getattr(self, kind))


@dataclass(frozen=True)
class Row:
    """One sample: a text, and the images, sounds and videos that belong to it."""

    text: str = _SENTENCE
    images: tuple[Any, ...] = ()
    audio: tuple[NDArray[np.float32], ...] = ()
    videos: tuple[tuple[Any, ...], ...] = ()


def rows_of(
    given: Given, kinds: Sequence[str], rate: int | None, frames: int | None = None
) -> list[Row]:
    """The rows of a sample, at least one: the user's, filled up with made ones.

    One text goes with all images; as many texts as images go with one image each.

    Args:
        given: by the user.
        kinds: what each row needs: ``text``, ``images``, ``audio``, ``videos``.
        rate: samples of sound per second.
        frames: of a video that the model takes, drawn evenly; all of them where None.

    Raises:
        InputError: a file that can't be read, or numbers of things that don't go together.
    """
    read = {
        "images": [_image(one) for one in given.images],
        "audio": [_sound(one, rate) for one in given.audio],
        "videos": [_drawn(_video(one), frames) for one in given.videos],
    }
    texts = [str(text) for text in given.text]
    counts = {name: len(items) for name, items in read.items() if items}
    rows = max(len(texts), 1)
    if not texts and "text" not in kinds:
        rows = max(counts.values(), default=1)
    found = [made_row(kinds, rate, index, frames) for index in range(rows)]
    for name, items in read.items():
        if items:
            dealt = _dealt(items, rows, name)
            found = [_with(row, name, part) for row, part in zip(found, dealt, strict=True)]
    return [replace(row, text=texts[i]) if i < len(texts) else row for i, row in enumerate(found)]


def _with(row: Row, kind: str, part: tuple[Any, ...]) -> Row:
    if kind == "images":
        return replace(row, images=part)
    return replace(row, audio=part) if kind == "audio" else replace(row, videos=part)


def made_row(
    kinds: Sequence[str], rate: int | None, index: int = 0, frames: int | None = None
) -> Row:
    """A row of made samples of the kinds; each index has its own.

    Args:
        kinds: ``text``, ``images``, ``audio``, ``videos``.
        rate: samples of sound per second.
        index: of the row.
        frames: of a video; four where None.
    """
    images = (_photograph(*_IMAGE, index),) if "images" in kinds else ()
    shifts = range(0, 4 * (frames or _FRAMES), 4) if "videos" in kinds else ()
    video = tuple(_photograph(64, 96, index, shift) for shift in shifts)
    return Row(
        images=images,
        audio=(_tone(rate or _RATE, 1.0, index),) if "audio" in kinds else (),
        videos=(video,) if video else (),
    )


def companion(row: Row) -> Row:
    """Another row of the same kinds: half of the text, mirrored images, a shorter sound."""
    words = row.text.split()
    return Row(
        text=" ".join(words[: (len(words) + 1) // 2]),
        images=tuple(_mirrored(image) for image in row.images),
        audio=tuple(sound[: sound.size * 4 // 5] for sound in row.audio),
        videos=tuple(tuple(_mirrored(frame) for frame in video) for video in row.videos),
    )


def changed(rows: Sequence[Row], change: str) -> list[Row]:
    """The rows with one thing of `CHANGES` changed."""
    if change == "rows":
        return [*rows, rows[0]]
    if change.startswith("text"):
        return [replace(row, text=_other_text(row.text, change)) for row in rows]
    if change == "sound":
        return [
            replace(row, audio=tuple(np.tile(s, 2)[: s.size * 3 // 2] for s in row.audio))
            for row in rows
        ]
    if change == "frames":
        return [
            replace(row, videos=tuple((*v, *v[: max(len(v) // 2, 1)]) for v in row.videos))
            for row in rows
        ]
    return [
        replace(row, images=tuple(_larger(image, change) for image in row.images)) for row in rows
    ]


def _other_text(text: str, change: str) -> str:
    words = text.split()
    if change == "text shorter":
        return " ".join(words[:-1])
    return f"{text}{_MORE}" if change == "text" else f"{text} {words[0] if words else 'a'}"


def _dealt(items: Sequence[Any], rows: int, name: str) -> list[tuple[Any, ...]]:
    if rows == 1:
        return [tuple(items)]
    if len(items) == rows:
        return [(item,) for item in items]
    options = {"images": "image", "audio": "audio", "videos": "video"}
    raise InputError(
        Advice(
            "{} and {} don't go together",
            Said("--text", "text"),
            Said(f"--{options[name]}", options[name]),
        ),
        got=f"{rows} texts, {len(items)} {name}",
        expected="one text, or as many as of these",
    )


def _image(given: Any) -> Any:
    return read_image(Path(given)) if isinstance(given, str | Path) else given


def _sound(given: Any, rate: int | None) -> NDArray[np.float32]:
    if isinstance(given, str | Path):
        return read_sound(Path(given), rate)
    return np.asarray(given, np.float32).reshape(-1)


def _video(given: Any) -> tuple[Any, ...]:
    return tuple(read_video(Path(given)) if isinstance(given, str | Path) else given)


def _drawn(video: tuple[Any, ...], frames: int | None) -> tuple[Any, ...]:
    """So many frames of a video, from its first to its last; some twice where it has fewer."""
    if frames is None or not video:
        return video
    places = np.linspace(0, len(video) - 1, frames).round().astype(int)
    return tuple(video[place] for place in places)


def _photograph(height: int, width: int, index: int, shift: int = 0) -> Any:
    """A made picture: a shaded ground, a disc and stripes, which differ by index and shift."""
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    ground = np.stack([x / width, y / height, (x + y) / (height + width)], axis=-1)
    disc = (x - width / 3 - shift) ** 2 + (y - height / 2) ** 2 < (height / (3 + index)) ** 2
    stripes = ((x + (2 + index) * y) // 9) % 2
    picture = 160 * ground + 60 * stripes[..., None]
    picture[disc] = (230.0, 90.0 + 40 * (index % 3), 40.0)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _tone(rate: int, seconds: float, index: int) -> NDArray[np.float32]:
    """Two tones and a little noise, fading in and out."""
    times = np.arange(int(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * (220 + 60 * index) * times) + 0.5 * np.sin(2 * np.pi * 931 * times)
    noise = np.random.default_rng(index).normal(size=times.size)
    fade = np.minimum(1.0, 10 * np.minimum(times, seconds - times))
    sound: NDArray[np.float32] = (0.3 * fade * (tone + 0.1 * noise)).astype(np.float32)
    return sound


def _mirrored(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.mirror(_picture(image))


def _picture(image: Any) -> Any:
    """An image of Pillow's, of one or of an array."""
    from PIL import Image

    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))


def _larger(image: Any, side: str) -> Any:
    """An image half as high again, or half as wide."""
    picture = _picture(image)
    width, height = picture.size
    size = (width, height * 3 // 2) if side == "height" else (width * 3 // 2, height)
    return picture.resize(size)
