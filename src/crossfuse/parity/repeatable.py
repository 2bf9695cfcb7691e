"""Whether the eager model is a function of its inputs: nothing else can be exported, and nothing
else compared.

A module left in training mode, or one with noise of its own, gives another result at each run;
taken for rounding, that difference would let anything pass. The module runs twice on the same
inputs, seeded differently:

1. Results differ, and with the first seed again they don't: it is random, unless they differ by
   rounding alone, as where an order alone was drawn. Results that differ although nothing was drawn
   are refused too, but for last bits: sums in threads.
2. Results are equal although something was drawn: a rare event may not have happened (a layer
   dropped once in a hundred runs). So the draws that decide are forced to both their ends; where
   that changes nothing, no draw reaches the results. Draws whose generator is in the same state in
   both runs are seeded inside and belong to the function.
3. Modules in training mode whose tensors change at each run (statistics of a batch) are refused,
whatever they return.

Random operators are seen by PyTorch's own tag; Python's and NumPy's global generators by their
states. All of them, and the module's buffers, are afterwards what they were before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.module_paths import module_stack
from crossfuse.export.capture.trace import named_outputs
from crossfuse.parity.draws import HIGH, LOW, Draw, DrawWatch, Force, Generators, bytes_of
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["require_repeatable"]

_MOST_NAMES = 5
_LAST_BITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Differences relative to an output's largest magnitude that sums in another order may make."""

_ROUNDINGS = 64
"""A random order of sums (padding in any order, say) changes results by so many units in the last
place: that is not noise."""

_FEW = 0.01
"""The share of an integer output's elements that last bits may change."""

_RARE = 0.01
"""Python's and NumPy's generators are tried with first draws below this, and above its
complement."""

Outputs = Mapping[str, Tensor]


@without_fast_paths()
def require_repeatable(spec: ModelSpec) -> None:
    """Refuse a module whose results depend on more than its inputs.

    A module that can't run at all is left to the steps that say why.

    Raises:
        InputError: naming what draws or changes, and the modules in training mode.
    """
    with _kept_as_it_was(spec.module) as before:
        try:
            try:
                first = _run(spec, before, _FIRST)
            except NotImplementedError:  # an operator that no dispatch mode can watch
                before.watched = False
                first = _run(spec, before, _FIRST)
            middle = _values(spec.module)
            second = _run(spec, before, _SECOND)
        except (Exception, SystemExit):  # noqa: BLE001 -- the user's code; the export's own first run names the error
            return
        if any(tensor.is_meta for tensor in first.outputs.values()):
            return
        changed, drawn = _changed(spec.module, middle), _drawn(first, second)
        trained = [
            name for name in changed if spec.module.get_submodule(name.rpartition(".")[0]).training
        ]
        apart = _apart(first.outputs, second.outputs)
        if drawn and apart.rounding:
            apart = _rare_event(spec, before, first, second)
        elif drawn:
            before.restore()
            again = _apart(first.outputs, _run(spec, before, _FIRST).outputs)
            if again.largest > apart.largest / 8:
                drawn = []
        if drawn and not apart.rounding:
            raise _random(spec, drawn, apart)
        if trained:
            raise _changing(spec, trained)
        if not apart.last_bits:
            raise _unsteady(spec, changed, apart)


def _rare_event(spec: ModelSpec, before: _Before, first: _Run, second: _Run) -> _Apart:
    """How far results come apart when draws that decide are forced, of two runs that gave the same
    results."""
    same = zip(first.draws, second.draws, strict=False)
    seeded = frozenset(i for i, (a, b) in enumerate(same) if a.state == b.state)
    results = [first.outputs]
    for end in (LOW, HIGH):
        results.append(_run(spec, before, _extreme_seeds(end), Force(end, seeded)).outputs)
    return max((_apart(a, b) for a in results for b in results), key=lambda found: found.largest)


# Errors


def _random(spec: ModelSpec, drawn: Sequence[str], apart: _Apart) -> InputError:
    return InputError(
        "the model is random: two runs on the same inputs differ",
        where=", ".join(drawn[:_MOST_NAMES]) or spec.name,
        got=apart.words(),
        expected="the same outputs",
        do=_advice(
            spec.module, "Take out what draws, or make its numbers an input of the model", drawn
        ),
    )


def _unsteady(spec: ModelSpec, changed: Sequence[str], apart: _Apart) -> InputError:
    why = (
        f"it keeps a state that changes at each run ({_listed(changed)})"
        if changed
        else "no random operator was seen"
    )
    return InputError(
        "the model's results depend on more than its inputs: two runs on the same inputs differ, "
        f"and {why}",
        where=spec.name,
        got=apart.words(),
        expected="the same outputs",
        do=_advice(spec.module, "Make what changes an input and an output of the model"),
    )


def _changing(spec: ModelSpec, changed: Sequence[str]) -> InputError:
    return InputError(
        "the model is in training mode: running it changes its own tensors, and what it computes "
        "depends on the batch",
        where=_listed(changed),
        do=_advice(spec.module, ""),
    )


def _advice(module: nn.Module, otherwise: str, drawn: Sequence[str] = ()) -> str:
    """To call ``.eval()`` where a module is in training mode, naming those that draw first."""
    training = {name: type(part).__name__ for name, part in module.named_modules() if part.training}
    if not training:
        return otherwise
    first = [name for name in training if any(text.startswith(f"{name}: ") for text in drawn)]
    names = list(dict.fromkeys([*first, *(name for name in training if name)])) or [""]
    listed = _listed([f"{name} ({training[name]})".strip() for name in names])
    return f"Call .eval() on the model first; in training mode: {listed}"


def _listed(names: Sequence[str]) -> str:
    more = f", … and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


# Runs


@dataclass
class _Run:
    """A run's outputs, what was drawn, and for each other generator whether it was used, and its
    state afterwards."""

    outputs: Outputs = field(default_factory=dict)
    draws: list[Draw] = field(default_factory=list)
    others: dict[str, tuple[bool, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seeds:
    """Of the global generators."""

    torch: int
    python: int
    numpy: int


_FIRST, _SECOND = _Seeds(1, 1, 1), _Seeds(2, 2, 2)


def _run(spec: ModelSpec, start: _Before, seeds: _Seeds, force: Force | None = None) -> _Run:
    """Run the module; where the seeds are the first ones, its own generators begin as they did
    then."""
    if seeds == _FIRST:
        start.generators.restore()
    torch.manual_seed(seeds.torch)
    random.seed(seeds.python)
    np.random.seed(seeds.numpy)
    made = _Run()
    before = _other_states()
    inputs = {name: tensor.clone() for name, tensor in spec.inputs.items()}
    with torch.no_grad(), module_stack(spec.module) as stack:
        watch = DrawWatch(stack, start.generators, force)
        with watch if start.watched else contextlib.nullcontext():
            outputs = spec.kept(named_outputs(spec.module(**inputs)))
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


def _drawn(first: _Run, second: _Run) -> list[str]:
    """What was drawn that is not seeded inside: operators with their modules, and global
    generators."""
    same = len(first.draws) == len(second.draws)
    found = [
        f"{draw.module or 'the model'}: {draw.operator}"
        for i, draw in enumerate(second.draws)
        if not same or draw.state != first.draws[i].state
    ]
    for name, (used, state) in second.others.items():
        if used and first.others[name] != (used, state):
            found.append(name)
    return list(dict.fromkeys(found))


def _extreme_seeds(end: str) -> _Seeds:
    """Seeds with which Python's and NumPy's first draws are at an end."""

    def found(first: Callable[[int], float]) -> int:
        draws = ((seed, first(seed)) for seed in range(1, 100_000))
        return next(
            seed for seed, draw in draws if (draw < _RARE if end == LOW else draw > 1 - _RARE)
        )

    python = found(lambda seed: random.Random(seed).random())
    numpy = found(lambda seed: float(np.random.RandomState(seed).random_sample()))
    return _Seeds(3, python, numpy)


# Differences


@dataclass(frozen=True)
class _Apart:
    """The output that differs most: by how much, relative to its magnitude.

    ``last_bits``: no more than sums in another order can make, at worst; ``rounding``: no more than
    they usually make.
    """

    output: str = ""
    largest: float = 0.0
    absolute: float = 0.0
    last_bits: bool = True
    rounding: bool = True

    def words(self) -> str:
        how = (
            f"by {self.absolute:.3g}"
            if np.isfinite(self.absolute)
            else "in its shape, or in what is finite"
        )
        return f"{self.output} differs {how}"


def _apart(first: Outputs, second: Outputs) -> _Apart:
    found = [_output_apart(name, first[name], second.get(name)) for name in first]
    return max(found, key=lambda apart: apart.largest, default=_Apart())


def _output_apart(name: str, first: Tensor, second: Tensor | None) -> _Apart:
    if second is None or first.shape != second.shape:
        return _Apart(name, float("inf"), float("inf"), last_bits=False, rounding=False)
    if first.numel() == 0 or torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0)):
        return _Apart(name)
    if not first.is_floating_point():
        share = float((first != second).double().mean())
        return _Apart(name, share, share, last_bits=share < _FEW, rounding=False)
    a, b = first.double().nan_to_num(0.0, 0.0, 0.0), second.double().nan_to_num(0.0, 0.0, 0.0)
    absolute = float((a - b).abs().max())
    relative = absolute / max(float(a.abs().max()), float(b.abs().max()), 1e-300)
    if not torch.equal(first.isfinite(), second.isfinite()):
        relative = absolute = float("inf")
    rounding = relative < _ROUNDINGS * torch.finfo(first.dtype).eps
    return _Apart(
        name,
        relative,
        absolute,
        last_bits=relative < _LAST_BITS.get(first.dtype, 1e-3),
        rounding=rounding,
    )


# State


def _values(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Buffers by path, with copies."""
    return {name: (buffer, buffer.detach().clone()) for name, buffer in module.named_buffers()}


def _changed(module: nn.Module, before: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
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
class _Before:
    """The module's buffers, and the states of its own generators, as they were; ``watched``: its
    operators can be."""

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
def _kept_as_it_was(module: nn.Module) -> Iterator[_Before]:
    """All global generators, and the module's buffers, are afterwards what they were."""
    before = _Before(module, _values(module))
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield before
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            before.restore()
