"""What a model says to planned inputs: it is run with them in eager, and its refusal is kept in its
own words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils._pytree import tree_leaves

from crossfuse.core.foreign import cause_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.sources.huggingface.input_plan import InputPlan

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Refusal", "draws", "narrow", "refusal_of", "refused"]


@dataclass(frozen=True)
class Refusal:
    """What a model raised.

    Attributes:
        error: the exception.
        inputs: that it was given.
    """

    error: Exception
    inputs: Mapping[str, Tensor]

    @property
    def message(self) -> str:
        """Its type and words."""
        return cause_of(self.error)

    def names(self, arguments: Collection[str]) -> list[str]:
        """Those of the arguments that it speaks of, in the order in which it does."""
        words = re.findall(r"\w+", str(self.error))
        return list(dict.fromkeys(word for word in words if word in arguments))


def refusal_of(
    model: nn.Module, plan: InputPlan, sizes: Mapping[str, int] | None = None
) -> Refusal | None:
    """Run the model in eager on inputs of a plan; None where it takes them.

    Args:
        model: in evaluation mode; what it keeps between runs is put back.
        plan: of its inputs; what it holds is given too.
        sizes: of the named dimensions; where omitted, the example's.
    """
    inputs: dict[str, Tensor] = {}
    try:
        inputs = plan.sample(dict(sizes or plan.example), torch.Generator().manual_seed(0))
        with torch.no_grad(), kept_state(model):
            model(**inputs, **plan.held_tensors())
    except Exception as error:  # noqa: BLE001 -- the library's code, or a checkpoint's own
        return Refusal(error, inputs)
    return None


def draws(model: nn.Module, plan: InputPlan) -> bool:
    """Whether a model draws random numbers: two runs on the same inputs of a plan, which it takes,
    differ."""
    inputs = plan.sample(plan.example, torch.Generator().manual_seed(0))
    found = []
    for _ in range(2):
        with torch.no_grad(), kept_state(model):
            outputs = model(**inputs, **plan.held_tensors())
        found.append([leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)])
    return not all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def narrow(model: nn.Module, plan: InputPlan) -> None:
    """Take back from the plan's dimensions what the model refuses: each is varied by itself. One
    that can't change is fixed, and one that can't be as small as planned gets a greater least
    size."""
    for name in list(plan.dims):
        dim, example = plan.dims[name], plan.example[name]
        further = example + 1 if dim.max is None or example < dim.max else example - 1
        if further < dim.min:
            continue
        if refusal_of(model, plan, plan.example | {name: further}) is not None:
            plan.fix(name)
            continue
        least = dim.min
        while least < example and refusal_of(model, plan, plan.example | {name: least}) is not None:
            least += max((example - least) // 2, 1)
        if least > dim.min:
            plan.forget(name)
            plan.dim(name, example, least, dim.max)


def refused(model: nn.Module, refusal: Refusal, missing: Collection[str]) -> InputError:
    """The model's own refusal of planned inputs, told as such.

    Args:
        model: that refuses.
        refusal: of what was planned first.
        missing: arguments that were not planned, of which it may speak.
    """
    spoken = refusal.names(missing)
    wanted = f"above all {', '.join(map(repr, spoken))}" if spoken else "real ones"
    given = ", ".join(
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in refusal.inputs.items()
    )
    return InputError(
        f"the model itself refuses the inputs that were planned from its configuration: "
        f"{refusal.message}",
        where=type(model).__name__,
        got=given or "no inputs",
        do=Advice(
            f"Give its inputs, {wanted}: {{}}, or a rule for crossfuse.register_input_rule",
            Said(
                "write a factory that returns crossfuse.huggingface_spec(model, inputs=…, "
                "dynamic=…)",
                "crossfuse.huggingface_spec(model, inputs=…, dynamic=…)",
            ),
        ),
    )
