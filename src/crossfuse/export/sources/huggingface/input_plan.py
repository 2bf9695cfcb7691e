"""Example inputs of a model of ``transformers``, from its configuration: what its ``forward``
takes, how large, how filled.

A plan has one rule per input: a shape of numbers and named dimensions, and a filling. Inputs are
seeded; ids avoid the special ones and end in the end-of-text id, masks are padded, so that masks
matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.tensors import Dim
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Filling",
    "Plan",
    "find",
    "grid_mask",
    "ids",
    "mask",
    "normal",
    "ones",
    "plan_inputs",
    "sizes_of",
]

Filling = Callable[[tuple[int, ...], torch.Generator, dict[str, Tensor]], Tensor]
"""Makes one input: its shape, the generator, and the inputs made before it."""

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "max_source_positions",
    "max_length",
)


@dataclass
class Plan:
    """Inputs by name, with the ranges and example sizes of their dimensions.

    ``fillings`` are run in their order, in which one may look at the ones before; ``shapes`` have
    the order of the inputs.
    """

    shapes: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    fillings: dict[str, Filling] = field(default_factory=dict)
    dims: dict[str, Dim] = field(default_factory=dict)
    example: dict[str, int] = field(default_factory=dict)
    context: tuple[str, ...] = ()
    decode: str | None = None

    def add(self, name: str, shape: tuple[int | str, ...], filling: Filling) -> None:
        """Plan an input; its dimensions must be known."""
        self.shapes[name], self.fillings[name] = shape, filling

    def dim(self, name: str, example: int, low: int = 1, high: int | None = None) -> str:
        """A named dimension; given twice, the first stands."""
        if name not in self.dims:
            high = None if high is None else max(high, low)
            self.dims[name] = Dim(name, low, high)
            self.example[name] = max(low, example if high is None else min(example, high))
        return name

    def forget(self, name: str) -> None:
        """Take a dimension back that no input has."""
        del self.dims[name], self.example[name]

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
        for name, filling in self.fillings.items():
            shape = tuple(
                sizes[size] if isinstance(size, str) else size for size in self.shapes[name]
            )
            made[name] = filling(shape, generator, made)
        return {name: made[name] for name in self.shapes}


def plan_inputs(model: nn.Module) -> Plan:
    """The plan for a model.

    Raises:
        InputError: nothing in its signature is known.
    """
    from crossfuse.export.sources.huggingface.input_rules import RULES

    config: Any = model.config
    takes = set(inspect.signature(model.forward).parameters)
    plan = Plan()
    plan.dim("batch", 2)
    rule = RULES.get(config.model_type)
    if rule is not None:
        rule(plan, model, takes)
    if not plan.shapes:
        _plain_inputs(plan, model, takes)
    if not plan.shapes:
        raise InputError(
            "its inputs can't be told from its configuration",
            where=type(model).__name__,
            got=", ".join(sorted(takes)),
            do="Write a factory that returns crossfuse.huggingface_spec(model, inputs=…, "
            "dynamic=…)",
        )
    if not plan.context:
        plan.context = _context(plan)
    encoded = plan.context and set(plan.shapes) - set(plan.context) == {"decoder_input_ids"}
    if encoded and getattr(config, "is_encoder_decoder", False):
        plan.decode = "decoder_input_ids"
    return plan


def _context(plan: Plan) -> tuple[str, ...]:
    """What changes rarely: an image beside text, and otherwise what an encoder takes beside a
    decoder."""
    images = tuple(name for name in plan.shapes if name in ("pixel_values", "pixel_mask"))
    if images and len(images) < len(plan.shapes):
        return images
    encoder = tuple(name for name in plan.shapes if not name.startswith("decoder_"))
    return encoder if len(encoder) < len(plan.shapes) else ()


def _plain_inputs(plan: Plan, model: nn.Module, takes: set[str]) -> None:
    """What the names of a signature say by themselves."""
    config: Any = model.config
    if "pixel_values" in takes:
        channels, height, width = sizes_of(config)
        plan.add("pixel_values", ("batch", channels, height, width), normal)
    if "input_ids" in takes:
        add_text(plan, text_config(config), "text", attention_mask="attention_mask" in takes)
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    if "decoder_input_ids" in takes and encoder_decoder:
        add_text(plan, config.get_text_config(decoder=True), "decoder_text", prefix="decoder_")


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the text."""
    found = getattr(config, "text_config", None) or getattr(config, "text_encoder", None)
    return found if found is not None and not isinstance(found, dict) else config


def add_text(
    plan: Plan,
    config: Any,
    dim: str,
    *,
    prefix: str = "",
    batch: str = "batch",
    attention_mask: bool = False,
    high: int | None = None,
    filling: Filling | None = None,
    low: int = 1,
    example: int = 7,
) -> None:
    """Ids, and a mask of them."""
    if high is None:
        found = find(config, *_LENGTHS)
        high = int(found) if isinstance(found, int) and found > 0 else None
        high = (
            high - 2
            if high is not None and find(config, "model_type") in _PADDED_POSITIONS
            else high
        )
    plan.dim(dim, example, low, high)
    name = f"{prefix}attention_mask"
    if attention_mask:
        plan.fillings[name] = mask  # made before the ids, which end where it ends
    plan.add(f"{prefix}input_ids", (batch, dim), filling or ids(config, name))
    if attention_mask:
        plan.shapes[name] = (batch, dim)


_PADDED_POSITIONS = ("roberta", "xlm-roberta", "bridgetower_text_model")


def ids(config: Any, mask_name: str = "") -> Filling:
    """Ids within the vocabulary, none of them special; the last one of each row that is not padding
    ends the text."""
    vocabulary = int(find(config, "vocab_size", "decoder_vocab_size") or 2)
    special = {
        find(config, f"{name}_token_id")
        for name in ("bos", "eos", "pad", "decoder_start", "image", "sep", "cls")
    }
    end, pad = find(config, "eos_token_id"), find(config, "pad_token_id")
    end = end[0] if isinstance(end, list) else end
    usable = torch.ones(vocabulary, dtype=torch.bool)
    usable[[i for i in special if isinstance(i, int) and 0 <= i < vocabulary]] = False
    plain = usable.nonzero().reshape(-1) if bool(usable.any()) else torch.zeros(1, dtype=torch.long)

    def fill(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        values = plain[torch.randint(len(plain), shape, generator=generator)]
        if mask_name in made:
            lengths = made[mask_name].sum(-1, keepdim=True)
            positions = torch.arange(shape[-1])
            if isinstance(end, int) and end < vocabulary:
                values = torch.where(positions == lengths - 1, end, values)
            if isinstance(pad, int) and 0 <= pad < vocabulary:
                values = torch.where(positions >= lengths, pad, values)
        return values

    return fill


def mask(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Ones, then padding of zeros; the first row whole, at least one 1 in each."""
    kept = torch.randint(1, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    kept[0] = shape[-1]
    return (torch.arange(shape[-1]) < kept).long()


def grid_mask(
    shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]
) -> Tensor:
    """Images padded at the right and the bottom by up to half; the first image whole."""
    batch, *axes = shape
    seen = torch.ones(shape, dtype=torch.long)
    for axis, size in enumerate(axes):
        kept = torch.randint(
            (size + 1) // 2, size + 1, (batch, *[1] * len(axes)), generator=generator
        )
        kept[0] = size
        positions = torch.arange(size).reshape([-1 if i == axis else 1 for i in range(len(axes))])
        seen = seen * (positions < kept)
    return seen


def normal(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=generator)


def ones(shape: tuple[int, ...], generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
    """Ones, as integers."""
    return torch.ones(shape, dtype=torch.long)


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
    return [
        part for name in getattr(config, "sub_configs", {}) or {}
        if (part := getattr(config, name, None)) is not None and hasattr(part, "model_type")
    ]  # fmt: skip


def sizes_of(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of images."""
    part = next(
        (
            p
            for n in ("vision_config", "image_config", "encoder")
            if (p := getattr(config, n, None)) is not None
        ),
        config,
    )
    size = find(part, "image_size", "input_image_size")
    if size is None:
        size = 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(find(part, "num_channels") or 3), int(height), int(width)
