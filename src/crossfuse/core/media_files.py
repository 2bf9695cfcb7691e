"""Photographs, sounds and videos from a user's files, as processors take them.

Sounds are WAV files (PCM), or arrays in NPY files; videos are folders of images, or images with
frames (GIF, WebP). Other formats need decoders that nothing else here does.
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.foreign import cause_of
from crossfuse.core.requirements import needed
from crossfuse.core.resample import resample
from crossfuse.errors import InputError

__all__ = ["on_white", "read_image", "read_sound", "read_video"]

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MOST_FRAMES = 64
_WIDTHS: dict[int, tuple[str, float, float]] = {
    1: ("u1", 128.0, 128.0),
    2: ("<i2", 0.0, 32768.0),
    3: ("<i4", 0.0, 2147483648.0),
    4: ("<i4", 0.0, 2147483648.0),
}
"""Bytes of a sample → the type it is read as, the number that is silence, and that of full
scale."""


def read_image(path: Path) -> Any:
    """An RGB image of Pillow's, upright, what is transparent in it white.

    Raises:
        InputError: the file can't be read as an image.
    """
    with needed("PIL", "reading images"):
        from PIL import Image, ImageOps
    try:
        with Image.open(path) as opened:
            return on_white(ImageOps.exif_transpose(opened))
    except Exception as error:
        raise InputError(f"the image can't be read: {cause_of(error)}", where=path) from error


def on_white(image: Any) -> Any:
    """An image of Pillow's as RGB, what is transparent in it white."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layers).convert("RGB")


def read_sound(path: Path, rate: int | None) -> NDArray[np.float32]:
    """A sound as samples ``[time]``, one channel.

    Args:
        path: a WAV file with PCM samples, or an NPY file with samples at the rate.
        rate: samples per second that are wanted; others are resampled.

    Raises:
        InputError: the file can't be read as a sound.
    """
    try:
        if path.suffix.lower() == ".npy":
            loaded: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
            return loaded.reshape(-1)
        with wave.open(str(path)) as file:
            channels, own = file.getnchannels(), file.getframerate()
            width, data = file.getsampwidth(), file.readframes(file.getnframes())
            kind, silence, full = _WIDTHS[width]
            samples = np.frombuffer(_widened(data) if width == 3 else data, kind).astype(float)
    except Exception as error:
        raise InputError(
            f"the sound can't be read: {cause_of(error)}",
            where=path,
            expected="a WAV file with 8, 16, 24 or 32 bits per sample, or an NPY file",
        ) from error
    sound = ((samples - silence) / full).reshape(-1, channels).mean(axis=1)
    if rate is not None:
        sound = resample(sound, own, rate)
    single: NDArray[np.float32] = sound.astype(np.float32)
    return single


def _widened(data: bytes) -> bytes:
    """Samples of three bytes as those of four, the new one the lowest."""
    samples = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return np.pad(samples, ((0, 0), (1, 0))).tobytes()


def read_video(path: Path) -> list[Any]:
    """The frames of a video, as images of Pillow's; at most 64, evenly chosen.

    Raises:
        InputError: nothing there can be read as frames.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES)
        frames = [read_image(file) for file in _chosen(files)]
    else:
        with needed("PIL", "reading videos"):
            from PIL import Image, ImageSequence
        try:
            with Image.open(path) as image:
                count = getattr(image, "n_frames", 1)
                kept = set(_chosen(range(count)))
                frames = [
                    frame.convert("RGB")
                    for i, frame in enumerate(ImageSequence.Iterator(image))
                    if i in kept
                ]
        except Exception as error:
            raise InputError(
                f"the video can't be read: {cause_of(error)}",
                where=path,
                expected="a folder of images, or a GIF or WebP file with frames",
            ) from error
    if not frames:
        raise InputError("the video has no frames", where=path, expected="a folder of images")
    return frames


def _chosen(items: Any) -> list[Any]:
    found = list(items)
    if len(found) <= _MOST_FRAMES:
        return found
    return [found[i * len(found) // _MOST_FRAMES] for i in range(_MOST_FRAMES)]
