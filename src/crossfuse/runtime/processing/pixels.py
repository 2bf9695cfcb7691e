"""`Pixels`: the settings of an image processor, and an image made by those that most have: resized,
cropped, rescaled, normalised, padded. NumPy, and Pillow where sizes change.

Many image processors differ in their settings alone. Those are known by name (`ALIKE`); what others
do besides is in `picture_kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from crossfuse.core.json_form import AtLeast, Form, Where
from crossfuse.errors import InputError
from crossfuse.runtime.processing.resizing import (
    height_and_width,
    middle,
    padded,
    plain_size,
    require_setting,
    resized,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALIKE", "Pixels", "in_full", "pixels_of"]

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

_Edge = Annotated[int, AtLeast(1, 1 << 28)]
"""Of an image, or of how many pixels it has."""
_Count = Annotated[int, AtLeast(1, 1 << 16)]
_Few = Annotated[int, AtLeast(1, 17)]
_Size = Mapping[str, _Edge | None]
_Channels = Annotated[tuple[float, ...], Where(lambda value: len(value) == 3, "3 numbers")]
_Grids = Annotated[
    tuple[tuple[_Edge, _Edge], ...], Where(lambda value: 0 < len(value) <= 256, "1 to 256 sizes")
]


@dataclass(frozen=True)
class Pixels:
    """Settings of an image processor, as ``preprocessor_config.json`` names them.

    Attributes:
        image_processor_type: whose they are.
        do_resize, size, resample: to which size, and by which of Pillow's filters.
        do_center_crop, crop_size: the middle that is left.
        do_rescale, rescale_factor: of the numbers from 0 to 255.
        do_normalize, image_mean, image_std: mean taken off, deviation divided by.
        do_pad, pad_size: zeros on the right and below, or what the kind pads.
        do_image_splitting, max_image_size: in tiles of that edge.
        crop_to_patches, min_patches, max_patches: in so many tiles; or how many patches.
        image_grid_pinpoints: heights and widths of which one is cut into tiles.
        do_pan_and_scan, pan_and_scan_min_crop_size, pan_and_scan_max_num_crops,
        pan_and_scan_min_ratio_to_activate: long images cut along their longer edge.
        do_thumbnail, do_align_long_axis: made smaller where larger; turned to the size's longer
            edge.
        patch_size, temporal_patch_size, merge_size: of patches, as often one behind the other, and
            so many side by side that become one token.
        num_image_tokens: of one tile, by the processor around.
        min_size: of the shorter edge.
        is_vqa: a text is drawn above the image.
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
    do_image_splitting: bool | None = None
    max_image_size: _Size | None = None
    crop_to_patches: bool | None = None
    min_patches: _Count | None = None
    max_patches: _Count | None = None
    image_grid_pinpoints: _Grids | None = None
    do_pan_and_scan: bool | None = None
    pan_and_scan_min_crop_size: _Count | None = None
    pan_and_scan_max_num_crops: _Count | None = None
    pan_and_scan_min_ratio_to_activate: float | None = None
    do_thumbnail: bool | None = None
    do_align_long_axis: bool | None = None
    patch_size: _Size | None = None
    temporal_patch_size: _Few | None = None
    merge_size: _Few | None = None
    num_image_tokens: _Edge | None = None
    min_size: _Count | None = None
    is_vqa: bool | None = None

    @property
    def kind(self) -> str:
        """The image processor's name, whichever library it computes with."""
        return self.image_processor_type.removesuffix("Fast").removesuffix("Pil")

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
        found = self.numbers(self.cut(self.resized(pixels_of(image))))
        if self.do_pad and self.pad_size is not None:
            return padded(found, *height_and_width(self.pad_size, "pad_size"))
        return found

    def resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An image ``[height, width, 3]``, resized where the settings say so."""
        if not self.do_resize:
            return image
        return self.at(image, plain_size(self.size, *image.shape[:2]))

    def at(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """An image ``[height, width, 3]`` at a height and a width, by the settings' filter."""
        return resized(image, size, self.resample)

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The middle of an image ``[height, width, 3]``, where the settings say so."""
        if not self.do_center_crop:
            return image
        return middle(image, *height_and_width(self.crop_size, "crop_size"))

    def numbers(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """An image ``[height, width, 3]`` as numbers ``[3, height, width]``, rescaled and
        normalised where the settings say so."""
        wide = image.transpose(2, 0, 1).astype(np.float64)
        if self.do_rescale:
            wide = wide * require_setting(self.rescale_factor, "rescale_factor")
        if self.do_normalize:
            mean = np.array(require_setting(self.image_mean, "image_mean"))[:, None, None]
            deviation = np.array(require_setting(self.image_std, "image_std"))[:, None, None]
            wide = (wide - mean) / deviation
        found: NDArray[np.float32] = wide.astype(np.float32)
        return found


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """An image as ``[height, width, 3]``.

    Raises:
        InputError: it is no such image.
    """
    found = np.asarray(image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[-1] != 3 or not found.size:
        raise InputError(
            "an image has to have three channels of bytes",
            got=f"{found.dtype}{list(found.shape)}",
            expected="uint8 [height, width, 3]",
        )
    return found


def in_full(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which one number for several is written out: of channels, of a patch's edges."""
    found = dict(given)
    for name in ("image_mean", "image_std"):
        if isinstance(found.get(name), int | float):
            found[name] = [found[name]] * 3
    if isinstance(found.get("patch_size"), int):
        found["patch_size"] = dict.fromkeys(("height", "width"), found["patch_size"])
    return found
