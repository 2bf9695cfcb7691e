"""Random operators as they run: which, where, and with their results forced to one end of their
range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crossfuse.export.capture.operator_watch import OperatorWatch

__all__ = ["HIGH", "LOW", "Draw", "DrawWatch", "Force", "Generators", "bytes_of"]

LOW, HIGH = "low", "high"
"""The two ends of a draw."""


@dataclass(frozen=True)
class Draw:
    """One call of a random operator: which, in which module, and a digest of its generator's state
    before."""

    operator: str
    module: str
    state: int


@dataclass(frozen=True)
class Force:
    """Decisions are drawn at one end, but for those (by position) that are seeded inside."""

    end: str
    seeded: frozenset[int]


@dataclass
class Generators:
    """Generators that random operators were given, with their states before they were first
    used."""

    states: list[tuple[torch.Generator, Tensor]] = field(default_factory=list)

    def note(self, generator: torch.Generator) -> None:
        """Remember one, the first time."""
        if all(known is not generator for known, _ in self.states):
            self.states.append((generator, generator.get_state()))

    def restore(self) -> None:
        """Put all back."""
        for generator, state in self.states:
            generator.set_state(state)


class DrawWatch(OperatorWatch):
    """Notes random operators, by PyTorch's own tag, and forces the results of those that decide.

    Args:
        stack: its last element is the path of the module that is running.
        generators: takes note of generators that are not PyTorch's default.
        force: what is forced, if anything.

    Attributes:
        draws: in their order.
    """

    def __init__(self, stack: Sequence[str], generators: Generators, force: Force | None) -> None:
        super().__init__()
        self.stack = stack
        self.generators = generators
        self.force = force
        self.draws: list[Draw] = []

    def watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, and note what it draws."""
        values = (
            _arguments(func, args, kwargs)
            if torch.Tag.nondeterministic_seeded in func.tags
            else None
        )
        if values is None or not _draws(values):
            return func(*args, **kwargs)
        generator = values.get("generator")
        if generator is not None:
            self.generators.note(generator)
        state = hash(bytes_of((generator or torch.default_generator).get_state()))
        result = func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        if self.force is not None and len(self.draws) not in self.force.seeded:
            _decide(name, values, result, self.force.end)
        self.draws.append(Draw(name, self.stack[-1], state))
        return result


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's elements as they lie in memory."""
    return (
        tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if tensor.numel()
        else b""
    )


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    arguments = func._schema.arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return (
        values | {a.name: value for a, value in zip(arguments, args, strict=False)} | dict(kwargs)
    )


def _draws(values: Mapping[str, Any]) -> bool:
    """Whether a random operator draws with these arguments: dropout of nothing, or outside
    training, does not."""
    off = any(values.get(name) is False for name in ("train", "training"))
    return not off and not any(values.get(name) == 0 for name in ("dropout_p", "dropout"))


def _decide(name: str, values: Mapping[str, Any], result: Any, end: str) -> None:
    """Overwrite draws that switch, or that are compared, with one end of their range.

    Others stay as drawn.
    """
    if not isinstance(result, Tensor):
        return
    kind = name.removesuffix("_").removesuffix("_like")
    if kind == "bernoulli":
        given = values.get("p")
        likely = torch.as_tensor(values["self"] if given is None else given)
        result.masked_fill_((likely > 0) & (likely < 1), 0 if end == LOW else 1)
    elif kind in ("rand", "uniform"):
        low, high = float(values.get("from", 0.0)), float(values.get("to", 1.0))
        result.fill_(low if end == LOW else high - (high - low) * 1e-6)
