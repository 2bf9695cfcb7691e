"""Masks of sound whose numbers a model reads: how long a sound is becomes a number of the export.

Some models cut sounds into pieces of so many frames, as many as a mask of these shows, and ask the
mask for numbers on the way (``lengths.max().item()``). No graph can do that. Beside a text a plan's
sounds are whole, so the mask is the same in every call: it is held, as sizes of images are.

Rules:

1. The mask is of sound, stands beside ids, and the model asks what it makes of it for a number.
2. Then there is one sound, of one length.

It must not fire on masks that are computed with alone, nor where numbers are asked for as a list
(``split(lengths.tolist())``), which may be traced as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.sources.huggingface.sound_forms import MASKS

if TYPE_CHECKING:
    from torch import nn

    from crossfuse.export.sources.huggingface.input_plan import InputPlan

__all__ = ["hold_read_lengths", "reads"]

_ASKS = frozenset(
    {Tensor.item, Tensor.__int__, Tensor.__index__, Tensor.__bool__, Tensor.__float__}
)


class _Watched(torch.Tensor):
    """A tensor that notes when it, or what is made of it, is asked for a number."""

    asked: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        watched = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _Watched)]
        asked = watched[0].asked if watched else []
        if func in _ASKS:
            asked.append(func.__name__)
        with torch._C.DisableTorchFunctionSubclass():
            plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
            result = func(*plain_args, **plain_kwargs)
        return tree_map(lambda value: _watched(value, asked), result)


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, _Watched) else value


def _watched(value: Any, asked: list[str]) -> Any:
    """What is made of a mask, watched as well; features are not."""
    if not isinstance(value, Tensor) or value.is_floating_point():
        return value
    found = value.as_subclass(_Watched)
    found.asked = asked
    return found


def reads(model: nn.Module, plan: InputPlan, name: str) -> bool:
    """Whether the model, run in eager on the plan's example, asks an input for numbers.

    Args:
        model: that takes the plan.
        plan: of its inputs.
        name: of the input, of integers.
    """
    inputs = plan.sample(dict(plan.example), torch.Generator().manual_seed(0))
    asked: list[str] = []
    given = inputs | {name: _watched(inputs[name], asked)} | plan.held_tensors()
    try:
        with torch.no_grad(), kept_state(model):
            model(**given)
    except Exception:  # noqa: BLE001 -- the library's code, on a tensor that it doesn't know
        return False
    return bool(asked)


def hold_read_lengths(model: nn.Module, plan: InputPlan) -> None:
    """Hold the mask of sound that the model asks for numbers, where there is one.

    Args:
        model: that takes the plan.
        plan: of its inputs; one sound of one length is left in it.
    """
    names = [name for name in MASKS if name in plan.shapes and "input_ids" in plan.shapes]
    for name in names:
        if reads(model, plan, name):
            plan.fix("batch", 1)
            for size in plan.shapes[name]:
                if isinstance(size, str):
                    plan.fix(size)
            shape = [size for size in plan.shapes[name] if isinstance(size, int)]
            plan.held[name] = torch.ones(shape, dtype=torch.long).tolist()
            plan.drop(name)
