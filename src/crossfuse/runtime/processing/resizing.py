"""Images resized with Pillow's filters, cropped and padded; and which sizes they are resized to by
the settings of image processors. Sizes are height and width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.requirements import needed
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LARGEST",
    "centred",
    "height_and_width",
    "middle",
    "padded",
    "plain_size",
    "require_room",
    "require_setting",
    "resized",
    "squared",
]

LARGEST = 1 << 15
"""Of an edge."""
_MOST_PIXELS = 1 << 25
"""Of one image: settings that ask for more would take a machine's memory."""

Edges = Mapping[str, int | None] | None


def require_setting(value: Any, name: str) -> Any:
    """A setting that has to be there.

    Raises:
        InputError: it isn't.
    """
    if value is None:
        raise InputError("a setting of the image processor is missing", where=name)
    return value


def height_and_width(size: Edges, name: str) -> tuple[int, int]:
    """Height and width that a setting names.

    Raises:
        InputError: it names none, or too many pixels.
    """
    height, width = ((size or {}).get(edge) for edge in ("height", "width"))
    if not height or not width:
        raise InputError(
            "a size of the image processor can't be told",
            where=name,
            got=dict(size or {}),
            expected="height and width, or shortest_edge",
        )
    return require_room(height, width, name)


def require_room(height: int, width: int, where: str) -> tuple[int, int]:
    """The size, where it is no larger than what is prepared here.

    Raises:
        InputError: it is.
    """
    if height * width > _MOST_PIXELS:
        raise InputError(
            "the image processor asks for more pixels than are prepared here",
            where=where,
            got=f"{width}×{height}",
            expected=f"at most {_MOST_PIXELS} pixels",
        )
    return height, width


def plain_size(size: Edges, height: int, width: int) -> tuple[int, int]:
    """The size after resizing an image of a height and a width, by the settings that there are.

    Raises:
        InputError: they don't say.
    """
    known = {key: value for key, value in (size or {}).items() if value}
    short, long = min(height, width), max(height, width)
    if "shortest_edge" in known and "longest_edge" in known:
        return _within_edges(height, width, known["shortest_edge"], known["longest_edge"])
    if "shortest_edge" in known:
        edges = (known["shortest_edge"], int(known["shortest_edge"] * long / short))
        return edges[::-1] if width <= height else edges
    if "max_height" in known and "max_width" in known:
        scale = min(known["max_height"] / height, known["max_width"] / width)
        return int(height * scale), int(width * scale)
    return height_and_width(known, "size")


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


def resized(
    image: NDArray[np.uint8], size: tuple[int, int], resample: int | None
) -> NDArray[np.uint8]:
    """An image at another size.

    Args:
        image: ``[height, width, 3]``.
        size: height and width.
        resample: which of Pillow's filters; the bilinear one where None.

    Raises:
        InputError: the size is none, or too large.
        PackageError: Pillow is not installed.
    """
    height, width = size
    if max(height, width) >= LARGEST or min(height, width) < 1:
        raise InputError(
            "the image is too narrow to be resized", got=f"{image.shape[1]}×{image.shape[0]}"
        )
    require_room(height, width, "size")
    with needed("PIL", "resizing images"):
        from PIL import Image
    filtered = Image.Resampling(2 if resample is None else resample)
    made = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filtered)
    found: NDArray[np.uint8] = np.asarray(made)
    return found


def middle(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The middle of an image ``[height, width, 3]``, zeros around it where it is smaller."""
    above, left = (
        math.ceil(max(0, wanted - own) / 2)
        for own, wanted in zip(image.shape, (height, width), strict=False)
    )
    below = max(0, height - image.shape[0]) - above
    right = max(0, width - image.shape[1]) - left
    whole = np.pad(image, ((above, below), (left, right), (0, 0)))
    top = (image.shape[0] - height) // 2 + above
    start = (image.shape[1] - width) // 2 + left
    return whole[top : top + height, start : start + width]


def padded(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """An image ``[channels, height, width]`` with zeros below and on the right.

    Raises:
        InputError: it is larger than that.
    """
    below, right = _room_beside(image.shape[1:], height, width)
    return np.pad(image, ((0, 0), (0, below), (0, right)))


def centred(
    image: NDArray[np.uint8], height: int, width: int, colour: Sequence[int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """An image ``[height, width, 3]`` in the middle of a larger one of one colour.

    Raises:
        InputError: it is larger than that.
    """
    above, left = _room_beside(image.shape[:2], height, width)
    require_room(height, width, "size")
    whole = np.empty((height, width, 3), np.uint8)
    whole[...] = colour
    top, start = above // 2, left // 2
    whole[top : top + image.shape[0], start : start + image.shape[1]] = image
    return whole


def squared(image: NDArray[np.uint8], mean: Sequence[float] | None) -> NDArray[np.uint8]:
    """An image ``[height, width, 3]`` in the middle of a square of the mean's colour."""
    edge = max(image.shape[:2])
    colour = [int(one * 255) for one in mean or (0.0, 0.0, 0.0)]
    return centred(image, edge, edge, colour)


def _room_beside(size: Sequence[int], height: int, width: int) -> tuple[int, int]:
    """How many rows and columns an image lacks of a size.

    Raises:
        InputError: it is larger than that.
    """
    if size[0] > height or size[1] > width:
        raise InputError(
            "the image is larger than what it is padded to",
            got=f"{size[1]}×{size[0]}",
            expected=f"at most {width}×{height}",
        )
    return height - size[0], width - size[1]
