"""What a model of ``transformers`` takes, as its configuration tells: names, shapes of numbers and
named dimensions, and how each input is filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.input_fillers import (
    Filler,
    bounded_ids,
    mask,
    normal,
    plain_ids,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FRAMES",
    "InputPlan",
    "InputRule",
    "TextInput",
    "add_image",
    "add_text",
    "find",
    "ids",
    "sizes_of",
    "text_config",
    "vision_config",
]

FRAMES = ("num_frames", "frames_per_clip", "num_frames_per_video")
"""Attributes of a configuration that say how many frames a video has."""

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "max_source_positions",
    "max_length",
)
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "bridgetower_text_model")
_IMAGE_PARTS = (
    "vision_config",
    "image_config",
    "encoder",
    "visual_config",
    "vision_encoder_config",
    "vq_config",
)
_SPECIAL = ("bos", "eos", "pad", "decoder_start", "image", "sep", "cls")


@dataclass
class InputPlan:
    """Inputs by name, with the ranges and example sizes of their dimensions.

    ``fillers`` are run in their order, in which one may look at the ones before; ``shapes`` have
    the order of the inputs. ``held`` are arguments that decide shapes, as nested lists of
    integers: they are no inputs, but part of what is exported. ``fixed`` are dimensions that got
    one size; ``settled`` and ``counts`` are as of a spec.
    """

    shapes: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    fillers: dict[str, Filler] = field(default_factory=dict)
    dims: dict[str, Dim] = field(default_factory=dict)
    example: dict[str, int] = field(default_factory=dict)
    context: tuple[str, ...] = ()
    decode: str | None = None
    held: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, int] = field(default_factory=dict)
    settled: dict[str, tuple[int, ...]] = field(default_factory=dict)
    counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def add(self, name: str, shape: tuple[int | str, ...], filler: Filler) -> None:
        """Plan an input; its dimensions must be known."""
        self.shapes[name], self.fillers[name] = self.sized(shape), filler

    def sized(self, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """A shape, with the sizes of dimensions that are fixed."""
        return tuple(
            self.fixed.get(size, size) if isinstance(size, str) else size for size in shape
        )

    def drop(self, name: str) -> None:
        """Take an input back."""
        del self.shapes[name], self.fillers[name]
        self.settled.pop(name, None)
        self.counts.pop(name, None)

    def copy(self) -> InputPlan:
        """Another plan with the same inputs."""
        return InputPlan(
            dict(self.shapes),
            dict(self.fillers),
            dict(self.dims),
            dict(self.example),
            self.context,
            self.decode,
            dict(self.held),
            dict(self.fixed),
            dict(self.settled),
            dict(self.counts),
        )

    def dim(self, name: str, example: int, low: int = 1, high: int | None = None) -> str:
        """A named dimension; given twice, the first stands."""
        if name not in self.dims and name not in self.fixed:
            high = None if high is None else max(high, low)
            self.dims[name] = Dim(name, low, high)
            self.example[name] = max(low, example if high is None else min(example, high))
        return name

    def forget(self, name: str) -> None:
        """Take a dimension back that no input has."""
        del self.dims[name], self.example[name]

    def fix(self, name: str, size: int | None = None) -> None:
        """Make a dimension one size: the given one, or the example's."""
        if name not in self.dims:
            return
        self.fixed[name] = self.example[name] if size is None else size
        for given, shape in self.shapes.items():
            self.shapes[given] = self.sized(shape)
        self.forget(name)

    def held_tensors(self) -> dict[str, Tensor]:
        """What is held, as a model takes it."""
        return {name: torch.tensor(value) for name, value in self.held.items()}

    @property
    def dynamic(self) -> dict[str, dict[int, str | Dim]]:
        """Axes per input, for a spec."""
        return {
            name: {i: self.dims[size] for i, size in enumerate(shape) if isinstance(size, str)}
            for name, shape in self.shapes.items()
        }

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Inputs of the given sizes."""
        made: dict[str, Tensor] = {}
        for name, filler in self.fillers.items():
            shape = tuple(
                sizes[size] if isinstance(size, str) else size for size in self.shapes[name]
            )
            made[name] = filler(shape, generator, made)
        return {name: made[name] for name in self.shapes}


InputRule = Callable[[InputPlan, "nn.Module", set[str]], None]
"""Plans a model's inputs: given the plan, which has the dimension ``batch``, the model, and the
names that its ``forward`` takes. A rule that plans nothing leaves the model to what the names say
by themselves."""


@dataclass(frozen=True)
class TextInput:
    """Ids of a text, and perhaps a mask of them.

    Attributes:
        dim: its length's name.
        prefix: of the inputs' names.
        batch: dimension of its rows.
        masked: the model takes a mask.
        low, high: range of the length; without ``high``, as far as the configuration allows.
        example: length in the example.
    """

    dim: str = "text"
    prefix: str = ""
    batch: str = "batch"
    masked: bool = False
    low: int = 1
    high: int | None = None
    example: int = 7


def add_text(plan: InputPlan, config: Any, text: TextInput) -> None:
    """Plan a text for the part of a configuration that describes it."""
    high = _longest(config) if text.high is None else text.high
    plan.dim(text.dim, text.example, text.low, high)
    name = f"{text.prefix}attention_mask"
    if text.masked:
        plan.fillers[name] = mask  # made before the ids, which end where it ends
    plan.add(f"{text.prefix}input_ids", (text.batch, text.dim), ids(config, name))
    if text.masked:
        plan.shapes[name] = plan.sized((text.batch, text.dim))


def _longest(config: Any) -> int | None:
    found = find(config, *_LENGTHS)
    if not isinstance(found, int) or found <= 0:
        return None
    return found - 2 if find(config, "model_type") in _PADDED_POSITIONS else found


def add_image(plan: InputPlan, config: Any) -> None:
    """Plan ``pixel_values`` of the configuration's size."""
    plan.add("pixel_values", ("batch", *sizes_of(config)), normal)


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the text."""
    found = getattr(config, "text_config", None) or getattr(config, "text_encoder", None)
    return found if found is not None and not isinstance(found, dict) else config


def ids(config: Any, mask_name: str = "") -> Filler:
    """Ids within the vocabulary, none of them special; the last one of each row that is not padding
    ends the text."""
    vocabulary = int(find(config, "vocab_size", "decoder_vocab_size") or 2)
    end, pad = find(config, "eos_token_id"), find(config, "pad_token_id")
    end = end[0] if isinstance(end, list) else end
    special = [find(config, f"{name}_token_id") for name in _SPECIAL]
    return bounded_ids(
        plain_ids(vocabulary, special),
        mask_name,
        end if isinstance(end, int) and end < vocabulary else None,
        pad if isinstance(pad, int) and 0 <= pad < vocabulary else None,
    )


def find(config: Any, *names: str) -> Any:
    """The first of the attributes that the configuration, or a part of it, has."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    for part in _parts(config):
        value = find(part, *names)
        if value is not None:
            return value
    return None


def _parts(config: Any) -> list[Any]:
    found = [getattr(config, name, None) for name in getattr(config, "sub_configs", {}) or {}]
    return [part for part in found if part is not None and hasattr(part, "model_type")]


def vision_config(config: Any) -> Any:
    """The part of a configuration that describes images; the whole where none is for them."""
    named = (getattr(config, name, None) for name in _IMAGE_PARTS)
    return next((part for part in named if part is not None and not isinstance(part, dict)), config)


def sizes_of(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of images."""
    part = vision_config(config)
    size = find(part, "image_size", "input_image_size", "img_size", "max_img_size", "resolution")
    if size is None:
        size = find(config, "image_size", "input_size") or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(find(part, "num_channels", "in_chans") or 3), int(height), int(width)
