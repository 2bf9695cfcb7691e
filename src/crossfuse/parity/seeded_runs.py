"""Runs of the user's module under chosen seeds, watched, with everything put back afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from crossfuse.export.capture.module_paths import module_stack
from crossfuse.parity.draws import LOW, Draw, DrawWatch, Force, Generators, bytes_of
from crossfuse.spec.model_spec import ModelSpec

__all__ = [
    "FIRST",
    "SECOND",
    "Before",
    "Run",
    "Seeds",
    "changed_buffers",
    "copied_buffers",
    "extreme_seeds",
    "kept_as_it_was",
    "run_seeded",
]

_RARE = 0.01
"""Python's and NumPy's generators are tried with first draws below this, and above its
complement."""


@dataclass
class Run:
    """A run's outputs, what was drawn, and for each other generator whether it was used, and its
    state afterwards."""

    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    draws: list[Draw] = field(default_factory=list)
    others: dict[str, tuple[bool, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Seeds:
    """Of the global generators."""

    torch: int
    python: int
    numpy: int


FIRST, SECOND = Seeds(1, 1, 1), Seeds(2, 2, 2)


def run_seeded(spec: ModelSpec, start: Before, seeds: Seeds, force: Force | None = None) -> Run:
    """Run the module.

    Where the seeds are the first ones, its own generators begin as they did then.
    """
    if seeds == FIRST:
        start.generators.restore()
    torch.manual_seed(seeds.torch)
    random.seed(seeds.python)
    np.random.seed(seeds.numpy)
    made = Run()
    before = _other_states()
    inputs = {name: tensor.clone() for name, tensor in spec.inputs.items()}
    with torch.no_grad(), module_stack(spec.module) as stack:
        watch = DrawWatch(stack, start.generators, force)
        with watch if start.watched else contextlib.nullcontext():
            outputs = spec.run(inputs)
    made.draws = watch.draws
    made.outputs = {name: tensor.detach().clone() for name, tensor in outputs.items()}
    made.others = {name: (state != before[name], state) for name, state in _other_states().items()}
    return made


def _other_states() -> dict[str, int]:
    kind, keys, position, *rest = np.random.get_state(legacy=True)
    return {
        "Python's random": hash(random.getstate()),
        "NumPy's random": hash((kind, np.asarray(keys).tobytes(), position, *rest)),
    }


def extreme_seeds(end: str) -> Seeds:
    """Seeds with which Python's and NumPy's first draws are at an end."""

    def found(first: Callable[[int], float]) -> int:
        draws = ((seed, first(seed)) for seed in range(1, 100_000))
        return next(
            seed for seed, draw in draws if (draw < _RARE if end == LOW else draw > 1 - _RARE)
        )

    python = found(lambda seed: random.Random(seed).random())
    numpy = found(lambda seed: float(np.random.RandomState(seed).random_sample()))
    return Seeds(3, python, numpy)


def copied_buffers(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Buffers by path, with copies."""
    return {name: (buffer, buffer.detach().clone()) for name, buffer in module.named_buffers()}


def changed_buffers(module: nn.Module, before: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    """Paths of buffers that are not what they were."""
    now = dict(module.named_buffers())
    return [
        name
        for name, buffer in now.items()
        if name not in before
        or buffer.shape != before[name][1].shape
        or bytes_of(buffer) != bytes_of(before[name][1])
    ]


@dataclass
class Before:
    """The module's buffers, and the states of its own generators, as they were.

    ``watched``: its operators can be.
    """

    module: nn.Module
    buffers: Mapping[str, tuple[Tensor, Tensor]]
    watched: bool = True
    generators: Generators = field(default_factory=Generators)

    def restore(self) -> None:
        """Put them back."""
        self.generators.restore()
        with torch.no_grad():
            for name, (buffer, value) in self.buffers.items():
                owner, _, own = name.rpartition(".")
                if buffer.shape == value.shape:
                    buffer.copy_(value)
                self.module.get_submodule(owner)._buffers[own] = buffer


@contextlib.contextmanager
def kept_as_it_was(module: nn.Module) -> Iterator[Before]:
    """All global generators, and the module's buffers, are afterwards what they were."""
    before = Before(module, copied_buffers(module))
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield before
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            before.restore()
