"""Branches on values of inputs: shortcuts that a trace leaves out, compared where they are taken.

``if mask.any():`` and ``if mask.all():`` choose between the general way and a shortcut for batches
without padding, without overflow, without this or that. A graph has one way. So a trace takes the
general one, ``any`` is true and ``all`` is not, and the other way is looked for among the model's
examples and samples: it has to be there, so that the model is compared where it takes it.

Rules:

1. Only what ``any`` or ``all`` gave, asked for its truth or its number, is assumed.
2. Where the model stops at once with an error (an ``assert`` on all values), the branch goes the
other way.
3. A branch whose other way no sample takes is refused, with its place: nothing would compare it.
A branch that ends the other way in an error needs no sample. Nor does one on whether ids hold a
placeholder, of which every row has so many that a session refuses others.
4. A check of numbers that values decide (``if x[mask].numel() != features.numel(): raise``) is
taken to hold: the branch is true, and then false, and where one of these ends in an error it goes
the other way. Where neither does, the tracer's own refusal stands.

It must not fire on any other value: a sum, a maximum, a comparison of two numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture.module_state import kept_state
from crossfuse.export.capture.traceable import replaced
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["Assumptions", "Place", "assumed", "other_ways"]

Place = tuple[str, int]
"""File and line."""

_MOST = 16
"""So many branches are turned around before the model is refused."""

_SEEDS = 8
"""So many samples are made at each size."""

_ANY = (torch.any, Tensor.any)
_ALL = (torch.all, Tensor.all)
_SAME = (Tensor.to, Tensor.bool, Tensor.squeeze, Tensor.cpu)
_ASKS = (Tensor.__bool__, Tensor.item)
_EQUAL = (torch.eq, Tensor.eq, Tensor.__eq__)

_OWN = (Path(__file__).parents[2], Path(torch.__file__).parent)


@dataclass
class Assumptions:
    """Which way branches are taken.

    Attributes:
        ways: place → the value that it is taken to have.
        turned: places whose first way ends in an error.
        unproven: checks of numbers that values decide, taken as true → what the tracer says.
        doubted: those that end in no error so, taken as false.
        proven: those that end in one then, and are true.
    """

    ways: dict[Place, bool] = field(default_factory=dict)
    turned: set[Place] = field(default_factory=set)
    unproven: dict[Place, Exception] = field(default_factory=dict)
    doubted: dict[Place, Exception] = field(default_factory=dict)
    proven: set[Place] = field(default_factory=set)

    def taken(self, place: Place, general: bool) -> bool:
        """The way of a branch, whose general one is this."""
        way = self.ways.pop(place, general != (place in self.turned))
        self.ways[place] = way
        return way

    def turn_last(self) -> bool:
        """Take the last branch the other way; whether there is one that was not turned yet."""
        last = next(reversed(self.ways), None)
        if last is not None and last in self.doubted:
            self._settle(last)
            return True
        if last is None or last in self.turned or len(self.turned) >= _MOST:
            return False
        self.turned.add(last)
        self.unproven.clear()
        self.ways = {last: not self.ways[last]}
        return True

    def cause_of(self, error: Exception) -> Exception:
        """What is to be said of an error in a trace: what was assumed without proof, before it."""
        return next(iter((*self.unproven.values(), *self.doubted.values())), error)

    def doubt(self) -> bool:
        """Whether there is a check that is true without proof: it is false from now on.

        Raises:
            Exception: what the tracer says of a check that may be either.
        """
        for error in self.doubted.values():
            raise error
        for place, error in self.unproven.items():
            self.doubted[place] = error
            self.turned.add(place)
            self.unproven, self.ways = {}, {}
            return True
        return False

    def _settle(self, place: Place) -> None:
        """A check that ends in an error where it is false is true."""
        del self.doubted[place]
        self.turned.remove(place)
        self.proven.add(place)
        self.ways = {place: True}

    @property
    def open(self) -> list[Place]:
        """Branches whose other way doesn't end in an error."""
        settled = self.turned | self.proven
        return [place for place in self.ways if place not in settled]


class _Branches(TorchFunctionMode):
    """Notes what ``any`` and ``all`` gave."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[int, tuple[Tensor, bool]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self._kinds.get(id(args[0])) if args else None
        if known is not None and func in _ASKS:
            return self.asked(known[1], func, args[0])
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.ndim:
            if func in _ANY or func in _ALL:
                self._kinds[id(result)] = (result, func in _ANY)
            elif known is not None and func in _SAME:
                self._kinds[id(result)] = (result, known[1])
        return result

    def asked(self, general: bool, func: Any, tensor: Tensor) -> Any:
        """The answer of a branch, whose general way is this."""
        raise NotImplementedError


class _Answer:
    """The number of ``any`` or ``all``, which is asked for its truth, or not at all."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __bool__(self) -> bool:
        return self._asked()


class _Assumed(_Branches):
    def __init__(self, assumptions: Assumptions) -> None:
        super().__init__()
        self._assumptions = assumptions

    def asked(self, general: bool, func: Any, tensor: Tensor) -> Any:
        answer = _Answer(partial(self._way, general))
        return answer if func is Tensor.item else bool(answer)

    def _way(self, general: bool) -> bool:
        return self._assumptions.taken(_place(), general)


@dataclass
class _Taken:
    """Which ways branches go.

    Attributes:
        ways: place → the values that it had.
        open: places of conditions that calls may have another value of.
    """

    ways: dict[Place, set[bool]] = field(default_factory=dict)
    open: set[Place] = field(default_factory=set)


class _Seen(_Branches):
    """Notes which ways branches go.

    Args:
        taken: where it is noted.
        standing: ids, and those among them that stand in every row of every call.
    """

    def __init__(self, taken: _Taken, standing: Sequence[tuple[Tensor, Collection[int]]]) -> None:
        super().__init__()
        self._taken, self._standing = taken, standing
        self._certain: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if not isinstance(result, Tensor):
            return result
        if func in _EQUAL:
            certain = self._stands(*args)
        else:
            certain = func in (*_ANY, *_SAME) and bool(args) and id(args[0]) in self._certain
        if certain:
            self._certain[id(result)] = result
        return result

    def _stands(self, ids: Any, token: Any) -> bool:
        """Each row of the ids holds the token, in every call."""
        return isinstance(token, int) and any(
            token in tokens and isinstance(ids, Tensor) and torch.equal(ids, known)
            for known, tokens in self._standing
        )

    def asked(self, general: bool, func: Any, tensor: Tensor) -> Any:
        found = bool(func(tensor))
        certain = id(tensor) in self._certain

        def note() -> bool:
            place = _place()
            self._taken.ways.setdefault(place, set()).add(found)
            if not certain:
                self._taken.open.add(place)
            return found

        answer = _Answer(note)
        return answer if func is Tensor.item else bool(answer)


def _place() -> Place:
    """Of the innermost frame that is neither PyTorch's nor crossfuse's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _is_own(filename: str) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in _OWN)


@contextmanager
def assumed(assumptions: Assumptions) -> Iterator[None]:
    """Take branches as assumed, for a while."""
    truth: Callable[[torch.SymBool], bool] = vars(torch.SymBool)["__bool__"]

    def checked(self: torch.SymBool) -> bool:
        try:
            return truth(self)
        except GuardOnDataDependentSymNode as error:
            if _is_own(sys._getframe(1).f_code.co_filename):
                raise
            place = _place()
            if place not in assumptions.turned | assumptions.proven:
                assumptions.unproven[place] = error
            return assumptions.taken(place, True)

    with _Assumed(assumptions), replaced(torch.SymBool, "__bool__", checked):
        yield


def other_ways(spec: ModelSpec, assumptions: Assumptions) -> list[dict[str, Tensor]]:
    """Samples at which the model takes the other way of each branch; those of the examples that do
    are left out.

    Raises:
        InputError: no sample does, so that nothing would compare it.
    """
    missing = {place: not assumptions.ways[place] for place in assumptions.open}
    found: list[dict[str, Tensor]] = []
    if not missing:
        return found
    for sample in _samples(spec):
        taken = _taken(spec, sample)
        shown = [place for place, way in missing.items() if way in taken.ways.get(place, ())]
        certain = taken.ways.keys() - taken.open
        missing = {place: way for place, way in missing.items() if place not in certain}
        if shown and not any(sample is example for example in (spec.inputs, *spec.examples)):
            found.append(sample)
        missing = {place: way for place, way in missing.items() if place not in shown}
        if not missing:
            return found
    (file, line), way = next(iter(missing.items()))
    raise InputError(
        "the model branches on values of its inputs, and goes one way alone in every example and "
        "sample: a graph has one way, and nothing would compare it with the other one",
        where=f"{spec.name}; {file}, line {line}",
        got=f"a condition that is always {not way}",
        do=Advice(
            "Give an example where it is {}: {}", str(way), Said("--example", "examples=[...]")
        ),
    )


def _samples(spec: ModelSpec) -> Iterator[dict[str, Tensor]]:
    """Examples, and samples at the least sizes, at the example's and between."""
    yield dict(spec.inputs)
    yield from (dict(example) for example in spec.examples)
    least = {name: dim.min for name, dim in spec.dims.items()}
    between = {name: (least[name] + size + 1) // 2 for name, size in spec.example_sizes.items()}
    for seed in range(_SEEDS):
        for sizes in (spec.example_sizes, least, between):
            yield spec.sample(sizes, seed=seed)


def _taken(spec: ModelSpec, sample: dict[str, Tensor]) -> _Taken:
    """Which ways the branches go; none where the model does not take the sample."""
    taken = _Taken()
    standing = [
        (sample[name], {token for token, count in counts.items() if count})
        for name, counts in spec.counts.items()
    ]
    try:
        with torch.no_grad(), kept_state(spec.module), _Seen(taken, standing):
            spec.call(sample)
    except Exception:  # noqa: BLE001 -- the user's code, on inputs that it may not take
        return _Taken()
    return taken
