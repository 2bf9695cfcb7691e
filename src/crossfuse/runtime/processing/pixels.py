"""`Pixels`: an image as a model takes it, by the settings of its image processor: resized, cropped,
rescaled, normalised, padded. NumPy, and Pillow where sizes change.

Many image processors differ in their settings alone. Those are known by name; others do more, and
are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from crossfuse.core.json_form import AtLeast, Form, Where
from crossfuse.core.requirements import needed
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALIKE", "Pixels"]

ALIKE = frozenset(
    f"{name}ImageProcessor"
    for name in (
        "Bit",
        "Blip",
        "CLIP",
        "ChineseCLIP",
        "DeiT",
        "MobileNetV1",
        "Pvt",
        "Siglip",
        "ViT",
    )
)
"""Image processors that differ in their settings alone."""

_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb")
_LARGEST = 1 << 15
_MOST_PIXELS = 1 << 25
"""Of one image: settings that ask for more would take a machine's memory."""
_Size = Mapping[str, Annotated[int, AtLeast(1, _LARGEST)] | None]
_Channels = Annotated[tuple[float, ...], Where(lambda value: len(value) == 3, "3 numbers")]


@dataclass(frozen=True)
class Pixels:
    """Settings of an image processor, as ``preprocessor_config.json`` names them.

    Attributes:
        image_processor_type: whose they are.
        do_resize, size, resample: to which size, and by which of Pillow's filters.
        do_center_crop, crop_size: the middle that is left.
        do_rescale, rescale_factor: of the numbers from 0 to 255.
        do_normalize, image_mean, image_std: mean taken off, deviation divided by.
        do_pad, pad_size: zeros on the right and below.
    """

    __json__: ClassVar[Form] = Form(required=frozenset({"image_processor_type"}))

    image_processor_type: str
    do_resize: bool | None = None
    size: _Size | None = None
    resample: Annotated[int, AtLeast(0, 6)] | None = None
    do_center_crop: bool | None = None
    crop_size: _Size | None = None
    do_rescale: bool | None = None
    rescale_factor: float | None = None
    do_normalize: bool | None = None
    image_mean: _Channels | None = None
    image_std: _Channels | None = None
    do_pad: bool | None = None
    pad_size: _Size | None = None

    def require_known(self, given: Mapping[str, Any]) -> None:
        """Refuse a processor that does more than is known here.

        Args:
            given: all that the settings say.

        Raises:
            InputError: naming what.
        """
        name = self.image_processor_type.removesuffix("Fast").removesuffix("Pil")
        more = [key for key in sorted(given) if key.startswith("do_") and given[key]]
        more = [key for key in more if key not in _FLAGS]
        if name in ALIKE and not more:
            return
        raise InputError(
            "images of this processor can't be prepared here",
            where="image_processor_type" if name not in ALIKE else more[0],
            got=name if name not in ALIKE else "true",
            expected=None if more else ", ".join(sorted(ALIKE)),
            do="Prepare them with the model's own processor, and give the arrays",
        )

    def __call__(self, image: Any) -> NDArray[np.float32]:
        """One image.

        Args:
            image: of Pillow's, or ``[height, width, 3]`` uint8.

        Returns:
            ``[3, height, width]`` float32.

        Raises:
            InputError: no such image, or settings that lack something.
            PackageError: Pillow is needed and not installed.
        """
        found = np.asarray(image)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[-1] != 3 or not found.size:
            raise InputError(
                "an image has to have three channels of bytes",
                got=f"{found.dtype}{list(found.shape)}",
                expected="uint8 [height, width, 3]",
            )
        if self.do_resize:
            found = self._resized(found)
        made = found.transpose(2, 0, 1)
        if self.do_center_crop:
            made = _middle(made, *_height_and_width(self.crop_size, "crop_size"))
        wide = made.astype(np.float64)
        if self.do_rescale:
            wide = wide * _given(self.rescale_factor, "rescale_factor")
        if self.do_normalize:
            mean = np.array(_given(self.image_mean, "image_mean"))[:, None, None]
            wide = (wide - mean) / np.array(_given(self.image_std, "image_std"))[:, None, None]
        if self.do_pad and self.pad_size is not None:
            wide = _padded(wide, *_height_and_width(self.pad_size, "pad_size"))
        pixels: NDArray[np.float32] = wide.astype(np.float32)
        return pixels

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = self._size_of(*image.shape[:2])
        if max(height, width) >= _LARGEST or min(height, width) < 1:
            raise InputError(
                "the image is too narrow to be resized", got=f"{image.shape[1]}×{image.shape[0]}"
            )
        _require_room(height, width, "size")
        with needed("PIL", "resizing images"):
            from PIL import Image
        filtered = Image.Resampling(2 if self.resample is None else self.resample)
        made = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filtered)
        resized: NDArray[np.uint8] = np.asarray(made)
        return resized

    def _size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size after resizing, by the settings that there are."""
        size = {key: value for key, value in (self.size or {}).items() if value}
        short, long = min(height, width), max(height, width)
        if "shortest_edge" in size and "longest_edge" in size:
            return _within_edges(height, width, size["shortest_edge"], size["longest_edge"])
        if "shortest_edge" in size:
            edges = (size["shortest_edge"], int(size["shortest_edge"] * long / short))
            return edges[::-1] if width <= height else edges
        if "max_height" in size and "max_width" in size:
            scale = min(size["max_height"] / height, size["max_width"] / width)
            return int(height * scale), int(width * scale)
        return _height_and_width(size, "size")


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise InputError("a setting of the image processor is missing", where=name)
    return value


def _height_and_width(size: Mapping[str, int | None] | None, name: str) -> tuple[int, int]:
    height, width = ((size or {}).get(edge) for edge in ("height", "width"))
    if not height or not width:
        raise InputError(
            "a size of the image processor can't be told",
            where=name,
            got=dict(size or {}),
            expected="height and width, or shortest_edge",
        )
    return _require_room(height, width, name)


def _within_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """The shorter edge as long as asked, unless the other would become longer than allowed."""
    short, long = min(height, width), max(height, width)
    exact: float = shortest
    if long / short * shortest > longest:
        exact = longest * short / long
    edge = round(exact)
    if edge == short:
        return height, width
    other = int(exact * long / short)
    return (other, edge) if width < height else (edge, other)


def _require_room(height: int, width: int, where: str) -> tuple[int, int]:
    if height * width > _MOST_PIXELS:
        raise InputError(
            "the image processor asks for more pixels than are prepared here",
            where=where,
            got=f"{width}×{height}",
            expected=f"at most {_MOST_PIXELS} pixels",
        )
    return height, width


def _middle(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The middle of an image, zeros around it where it is smaller."""
    above, left = (
        math.ceil(max(0, wanted - own) / 2)
        for own, wanted in zip(image.shape[1:], (height, width), strict=True)
    )
    below = max(0, height - image.shape[1]) - above
    right = max(0, width - image.shape[2]) - left
    whole = np.pad(image, ((0, 0), (above, below), (left, right)))
    top = (image.shape[1] - height) // 2 + above
    start = (image.shape[2] - width) // 2 + left
    return whole[:, top : top + height, start : start + width]


def _padded(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    below, right = height - image.shape[1], width - image.shape[2]
    if below < 0 or right < 0:
        raise InputError(
            "the image is larger than what it is padded to",
            got=f"{image.shape[2]}×{image.shape[1]}",
            expected=f"at most {width}×{height}",
        )
    return np.pad(image, ((0, 0), (0, below), (0, right)))
