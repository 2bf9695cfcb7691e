"""`StateMemory`: the tensors of a decoding state, where the engine computes, and the runs that read
and write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.tensors import NEXT, STATE, TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.device_array import DeviceArray, item_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.stage import Stage

__all__ = ["StateMemory"]


class StateMemory:
    """Tensors of fixed size, one row of each per sequence.

    They are made once. On the CPU a run writes its rows in place, and copies nothing; on a GPU
    there are two sets of them, and a run reads the one and writes the other. A stage of one
    sequence runs for each of several, on the CPU.

    Args:
        engine: the step stage.
        inputs: its specs.
        batch: how many sequences there are.
        given: what else the stage takes and no run changes.

    Attributes:
        tensors: by the names of the stage's inputs.

    Raises:
        InputError: a stage of another number of sequences, which can't run for each of them.
    """

    def __init__(
        self, engine: Stage, inputs: Iterable[TensorSpec], batch: int, given: Mapping[str, Any]
    ) -> None:
        self._engine = engine
        self._given = dict(given)
        states = [spec for spec in inputs if spec.name.startswith(STATE)]
        self._one_by_one = _runs_one_by_one(states, batch, engine)
        self._parts: list[StateMemory] = []
        shapes = {spec.name: (_shape(spec, batch), spec.dtype) for spec in states}
        self.tensors: dict[str, Any] = {name: self._zeros(*of) for name, of in shapes.items()}
        self._other: dict[str, DeviceArray] = {}
        if engine.on_device:
            self._other = {name: self._zeros(*of) for name, of in shapes.items()}
        self._fixed: dict[str, NDArray[Any]] = {}
        self._binding: Any = None
        self._outputs: dict[str, NDArray[Any]] = {}
        self._whole, self._rows, self._binds = batch, slice(0, batch), True
        self._made: dict[str, NDArray[Any]] = {}

    @staticmethod
    def bytes_of(engine: Stage, inputs: Iterable[TensorSpec], batch: int) -> int:
        """What the tensors of so many sequences take."""
        sizes = (
            math.prod(_shape(spec, batch)) * item_size(spec.dtype)
            for spec in inputs
            if spec.name.startswith(STATE)
        )
        return sum(sizes) * (2 if engine.on_device else 1)

    def part(self, rows: slice, given: Mapping[str, Any], *, binds: bool) -> StateMemory:
        """Some of the sequences, in the same memory; of an engine on the host.

        Args:
            rows: which.
            given: what else the stage takes, of these alone.
            binds: whether steps of one token are prepared at the first of them: for a part that
                gets many.
        """
        made = StateMemory(self._engine, (), self._whole, given)
        made.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        made._rows, made._binds, made._made = rows, binds, self._made
        return made

    def clear(self, row: int) -> None:
        """Fill a sequence's rows with zeros: what it held, NaN too, must not meet another's."""
        for tensor in (*self.tensors.values(), *self._other.values()):
            if isinstance(tensor, DeviceArray):
                tensor.put(row, None)
            else:
                tensor[row] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(array.nbytes) for array in (*self.tensors.values(), *self._other.values()))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute the outputs for new tokens, and write their rows.

        Args:
            feeds: the tokens, their places, and what is beside them.

        Returns:
            the outputs that are no state; those of one token per sequence are overwritten by the
            next run of one token.
        """
        if self._one_by_one:
            return self._each(feeds)
        several = any(array.ndim == 2 and array.shape[1] != 1 for array in feeds.values())
        if several or not self._binds or self._engine.on_device:
            return self._run(feeds)
        if self._binding is None:
            return self._run_and_bind(feeds)
        for name, array in feeds.items():
            self._fixed[name][...] = array
        self._engine.run_bound(self._binding)
        return self._outputs

    def move(self, into: NDArray[np.int64], rows: NDArray[np.int64], begin: int, end: int) -> None:
        """Sequences ``into`` get what is between two places of sequences ``rows``; the others stay.

        On a GPU all of a sequence is copied, and nothing changes unless all goes well.
        """
        if self._engine.on_device:
            whole = np.arange(next(iter(self.tensors.values())).shape[0])
            whole[into] = rows
            self.take(self, whole, end)
            return
        for tensor in self.tensors.values() if into.size else ():
            tensor[into, begin:end] = tensor[rows, begin:end]

    def take(self, source: StateMemory, rows: NDArray[np.int64], count: int) -> None:
        """Sequence ``i`` gets the first ``count`` rows of the source's sequence ``rows[i]``;
        nothing changes unless all goes well."""
        if self._engine.on_device:
            chosen = rows.tolist()
            self.tensors = {name: t.take(chosen, 0) for name, t in source.tensors.items()}
            return
        for name, tensor in source.tensors.items():
            self.tensors[name][:, :count] = tensor[rows, :count]

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        if self._engine.on_device:
            return self._engine.empty(shape, dtype).zero()
        return np.zeros(shape, dtype)

    def _each(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A run for each sequence."""
        if not self._parts:
            each = range(self._whole)
            self._parts = [self.part(slice(i, i + 1), self._given, binds=True) for i in each]
        made = [
            part.run({name: array[i : i + 1] for name, array in feeds.items()})
            for i, part in enumerate(self._parts)
        ]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]}

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A run of any tokens. The state stays where it is; on a GPU nothing in it changes unless
        the whole run went well."""
        on_device = self._engine.on_device
        into = self._other if on_device else self.tensors
        kept = {NEXT + name.removeprefix(STATE): array for name, array in into.items()}
        made = self._engine.run_into({**self._given, **feeds, **self.tensors}, kept)
        named = dict(zip(self._engine.boundary[1], made, strict=True))
        if on_device:
            self.tensors, self._other = self._other, self.tensors
        return {name: array for name, array in named.items() if name not in kept}

    def _run_and_bind(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The first step of one token; inputs and outputs of those behind it are fixed in memory.

        A state's next value is written where it is: the engine then changes one row and copies
        nothing.
        """
        made = self._run(feeds)
        if not self._made:
            self._made.update(self._room(made))
        self._outputs = {name: array[self._rows] for name, array in self._made.items()}
        for name, array in made.items():
            self._outputs[name][...] = array
        self._fixed = {name: np.array(array, order="C") for name, array in feeds.items()}
        ends = [
            self.tensors[STATE + n.removeprefix(NEXT)] if n.startswith(NEXT) else self._outputs[n]
            for n in self._engine.boundary[1]
        ]
        self._binding = self._engine.bind({**self._given, **self._fixed, **self.tensors}, ends)
        return self._outputs

    def _room(self, made: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Memory for the outputs of all sequences, which parts share."""
        whole = self._rows == slice(0, self._whole)
        for name, array in made.items():
            shape = array.shape if whole else (self._whole, *array.shape[1:])
            yield name, np.empty(shape, array.dtype)


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Of a state's tensor, whose first axis counts the sequences."""
    return (batch, *(size if isinstance(size, int) else batch for size in spec.shape[1:]))


def _runs_one_by_one(states: Sequence[TensorSpec], batch: int, engine: Stage) -> bool:
    """Whether the stage takes one sequence, and there are several.

    Raises:
        InputError: it takes another number of them, or computes on a GPU.
    """
    fixed = next((spec.shape[0] for spec in states if isinstance(spec.shape[0], int)), batch)
    if fixed == batch:
        return False
    if fixed != 1 or engine.on_device:
        raise InputError(
            "the bundle's step stage takes a fixed number of sequences at once",
            got=f"{batch} sequences",
            expected=fixed,
            do="Give so many prompts, and no beams",
        )
    return True
