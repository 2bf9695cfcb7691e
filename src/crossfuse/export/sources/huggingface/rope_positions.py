"""Positions of several axes that a model makes of its ids and of the sizes of images, by loops that
no graph has: they become an input, in place of the kinds of tokens that they are made of, where
these are an input."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.export.sources.huggingface.input_fillers import Shape
from crossfuse.export.sources.huggingface.input_plan import InputPlan
from crossfuse.export.sources.huggingface.sound_forms import MASKS
from crossfuse.export.sources.huggingface.trial import refusal_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["put_positions"]

_KINDS = "mm_token_type_ids"


def put_positions(model: nn.Module, plan: InputPlan, takes: set[str]) -> InputPlan:
    """The plan with positions as an input, where the model makes them and takes them; else as it
    is.

    Args:
        model: that has ``get_rope_index`` somewhere.
        plan: that it takes.
        takes: names that its ``forward`` takes.
    """
    maker: Any = next((part for part in model.modules() if hasattr(part, "get_rope_index")), None)
    if maker is None or "position_ids" not in takes:
        return plan
    wanted = inspect.signature(maker.get_rope_index).parameters
    beside = _KINDS if _KINDS in plan.shapes else "input_ids"
    if beside not in plan.shapes or (beside != _KINDS and (_KINDS in wanted or not plan.held)):
        return plan
    kinds, shape = plan.fillers.get(_KINDS), plan.shapes[beside]
    held = plan.held_tensors()
    masks = [held[name] for name in MASKS if name in held]
    lengths = {"audio_seqlens": masks[0].sum(-1)} if masks else {}

    def fill(shape: Shape, generator: torch.Generator, made: dict[str, Tensor]) -> Tensor:
        known = made | held | lengths
        if kinds is not None:
            known[_KINDS] = kinds(tuple(shape[1:]), generator, made)
        given = {name: value for name, value in known.items() if name in wanted}
        with torch.no_grad():
            positions: Tensor = maker.get_rope_index(**given)[0]
        return positions.contiguous()

    try:
        found = fill((0, *_sizes(plan, shape)), torch.Generator(), _made(plan))
    except Exception:  # noqa: BLE001 -- the model's own code; it makes its positions itself then
        return plan
    changed = plan.copy()
    if kinds is not None:
        changed.drop(_KINDS)
    changed.add("position_ids", (found.shape[0], *shape), fill)
    changed.settled["position_ids"] = ()
    return plan if refusal_of(model, changed) is not None else changed


def _made(plan: InputPlan) -> dict[str, Tensor]:
    return plan.sample(plan.example, torch.Generator().manual_seed(0))


def _sizes(plan: InputPlan, shape: tuple[int | str, ...]) -> Shape:
    return tuple(plan.example[axis] if isinstance(axis, str) else axis for axis in shape)
