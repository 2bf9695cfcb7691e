"""What a model of ``diffusers`` takes: names, shapes of numbers and named dimensions, and how each
input is filled; and the forms that are tried, as images come in several layouts and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from crossfuse.core.dimensions import multiple_of
from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.input_fillers import Filler

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Form",
    "Grid",
    "InputPlan",
    "Layout",
    "Shape",
    "factor_of",
    "find",
    "fixed_length",
    "forms",
]

Shape = tuple[int | str, ...]
"""Sizes as numbers, names of dimensions, or multiples of these (``8*height``)."""

Layout = Literal["image", "tokens", "video", "frames", "length", "vector"]
"""Axes of what is denoised: ``[B, C, H, W]``, ``[B, tokens, C]``, ``[B, C, frames, H, W]``,
``[B, frames, C, H, W]``, ``[B, C, length]``, ``[B, C]``."""

Grid = Literal["free", "multiples", "fixed"]
"""Images of any size, of multiples of the model's factor, or of the configuration's size.

Models that take squares alone compute the root of a number of tokens, which no trace can follow:
they have the configuration's size.
"""

_GRIDS: tuple[Grid, ...] = ("free", "multiples", "fixed")
_WIDTHS = (
    "caption_channels", "joint_attention_dim", "text_embed_dim", "text_dim", "cap_feat_dim",
    "cross_attention_dim", "encoder_hid_dim", "caption_dim", "context_in_dim", "embedding_dim",
)  # fmt: skip
"""Entries of configurations that may be the width of the text's states."""

_LENGTHS = ("max_text_seq_length", "num_embeddings", "text_len", "max_sequence_length")
_SOME = 7


@dataclass(frozen=True)
class Form:
    """One way in which a model may take its inputs.

    Attributes:
        layout: of what is denoised.
        grid: the sizes of images.
        width: of the text's states; None where the configuration names none.
        rest_fixed: the text's length and the number of frames are the configuration's.
    """

    layout: Layout
    grid: Grid
    width: int | None
    rest_fixed: bool = False


@dataclass
class InputPlan:
    """Inputs by flat names, with the ranges and example sizes of their dimensions.

    Attributes:
        shapes, fillers: of the inputs, in their order.
        dims, example: of the named dimensions; `other` sizes are tried beside the example.
        context: names of inputs that stay the same in all steps.
        constants: arguments that are no tensors.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    fillers: dict[str, Filler] = field(default_factory=dict)
    dims: dict[str, Dim] = field(default_factory=dict)
    example: dict[str, int] = field(default_factory=dict)
    context: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, shape: Shape, filler: Filler, *, context: bool = False) -> None:
        """Plan an input; its dimensions must be known."""
        self.shapes[name], self.fillers[name] = shape, filler
        if context:
            self.context.append(name)

    def dim(self, name: str, example: int, low: int = 1, high: int | None = None) -> str:
        """A named dimension; given twice, the first stands."""
        if name not in self.dims:
            self.dims[name] = Dim(name, low, high)
            self.example[name] = example
        return name

    @property
    def other(self) -> dict[str, int]:
        """Sizes of the dimensions that are not the example's, nor in a fixed relation to them."""
        steps = (1, 2, 3, 5, 7, 11)
        return {
            name: size + 1 if name == "batch" else size + steps[i % len(steps)]
            for i, (name, size) in enumerate(self.example.items())
        }

    @property
    def dynamic(self) -> dict[str, dict[int, str | Dim]]:
        """Axes per input, for a spec."""
        return {
            name: {i: self._axis(size) for i, size in enumerate(shape) if isinstance(size, str)}
            for name, shape in self.shapes.items()
        }

    def _axis(self, size: str) -> str | Dim:
        return self.dims.get(size, size)

    def sample(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Inputs of the given sizes, nested as the model takes them, constants among them."""
        made: dict[str, Tensor] = {}
        for name, filler in self.fillers.items():
            shape = tuple(_size(size, sizes) for size in self.shapes[name])
            made[name] = filler(shape, generator, made)
        nested: dict[str, Any] = dict(self.constants)
        for name, tensor in made.items():
            outer, _, inner = name.partition(".")
            if inner:
                nested.setdefault(outer, {})[inner] = tensor
            else:
                nested[outer] = tensor
        return nested


def forms(model: nn.Module, names: frozenset[str]) -> Iterator[Form]:
    """The forms to try, likely ones first.

    Args:
        model: with a configuration.
        names: of the parameters of its ``forward``.
    """
    config: Any = model.config
    widths = _widths(config) if "encoder_hidden_states" in names else [None]
    for layout, width in product(_layouts(model, names), widths):
        grids = _GRIDS if layout in ("image", "video", "frames") else ("free",)
        for rest_fixed, grid in product((False, True), grids):
            if grid != "fixed" or find(config, "sample_size") is not None:
                yield Form(layout, grid, width, rest_fixed)


def _layouts(model: nn.Module, names: frozenset[str]) -> tuple[Layout, ...]:
    kind = type(model).__name__
    if {"img_ids", "txt_ids", "img_shapes"} & names:
        return ("tokens",)
    if "proj_embedding" in names:
        return ("vector",)
    if any(word in kind for word in ("3D", "Motion", "Temporal", "Video", "Mochi", "Wan")):
        return ("video", "frames", "tokens", "image")
    if any(word in kind for word in ("1D", "Audio", "Oobleck")):
        return ("length", "tokens")
    return ("image", "tokens", "length")


def _widths(config: Any) -> list[int | None]:
    first = find(config, "encoder_hid_dim") if find(config, "encoder_hid_dim_type") else None
    found = [first, *(find(config, name) for name in _WIDTHS)]
    numbers = [v for value in found for v in (value if _several(value) else [value])]
    distinct: list[int | None] = []
    for number in numbers:
        if isinstance(number, int) and not isinstance(number, bool) and number not in distinct:
            distinct.append(number)
    return distinct or [None]


def _several(value: object) -> bool:
    return isinstance(value, list | tuple)


def find(config: Any, *names: str) -> Any:
    """The first of the entries that a configuration has."""
    for name in names:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if value is not None:
            return value
    return None


def fixed_length(config: Any) -> int:
    """The text's length where it can't be free."""
    found = find(config, *_LENGTHS)
    return found if isinstance(found, int) and found > 0 else _SOME


def factor_of(model: nn.Module) -> int:
    """By how much a model makes images smaller on its way, so what their sizes may have to be a
    multiple of."""
    config: Any = model.config
    for name in ("input_factor", "spatial_compression_ratio"):
        own = getattr(model, name, None)
        if isinstance(own, int) and own > 0:
            return own
    patch = find(config, "patch_size", "downscale_factor")
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    blocks = find(config, "block_out_channels", "channels")
    halved = 2 ** (len(blocks) - 1) if isinstance(blocks, list | tuple) and blocks else 1
    return halved * (patch if isinstance(patch, int) and patch > 0 else 1)


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    factor, name = multiple_of(size) or (1, size)
    return factor * sizes[name]
