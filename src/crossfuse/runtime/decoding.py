"""`DecodingState`: the self-attention keys and values of sequences that grow token by token, in
memory of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.tensors import NEXT, POSITION, STATE, TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.input_checks import positions_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.stage import Stage

__all__ = ["DecodingState"]


class DecodingState:
    """Sequences being decoded over a context, by :meth:`Session.step`. For one thread at a time.

    Attributes:
        context: what the sequences look at.
        batch: how many sequences there are; a multiple of the contexts.
        position: how many tokens each sequence has by now.
        length: the most tokens it can have.

    The state's tensors are made once, where the engine computes. On the CPU a step writes one row
    of each in place; on a GPU there are two sets of them, and a step reads the one and writes the
    other.
    """

    def __init__(
        self,
        context: Context,
        engine: Stage,
        inputs: tuple[TensorSpec, ...],
        tokens: str,
        batch: int,
        length: int,
    ) -> None:
        self.context = context
        self.batch = batch
        self.length = length
        self._engine = engine
        self._position = np.zeros(1, dtype=np.int64)
        dtype = next(spec.dtype for spec in inputs if spec.name == tokens)
        self.tokens: NDArray[Any] = np.zeros((batch, 1), dtype=dtype)
        names = {spec.name for spec in inputs}
        shapes = {
            spec.name: (
                tuple(size if isinstance(size, int) else batch for size in spec.shape),
                spec.dtype,
            )
            for spec in inputs
            if spec.name.startswith(STATE)
        }
        self._state: dict[str, Any] = {}
        self._other: dict[str, DeviceArray] = {}
        if engine.on_device:
            self._state = {
                name: engine.empty(shape, dtype).zero() for name, (shape, dtype) in shapes.items()
            }
            self._other = {
                name: engine.empty(shape, dtype).zero() for name, (shape, dtype) in shapes.items()
            }
        else:
            self._state = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        given = {name: tensor for name, tensor in context.tensors.items() if name in names}
        self._feeds = {**given, tokens: self.tokens, POSITION: self._position, **self._state}
        self._binding: Any = None
        self._outputs: dict[str, NDArray[Any]] = {}

    @property
    def position(self) -> int:
        """How many tokens each sequence has by now."""
        return int(self._position[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the state's tensors, those of the context not counted."""
        return sum(int(array.nbytes) for array in (*self._state.values(), *self._other.values()))

    def reorder(self, indices: Sequence[int]) -> None:
        """Sequence ``i`` goes on from what was sequence ``indices[i]``; for beams.

        Contexts keep their order.

        Raises:
            InputError: other than one position per sequence.
        """
        order = positions_of(indices)
        if order.shape != (self.batch,) or order.min() < 0 or order.max() >= self.batch:
            raise InputError(
                "one position per sequence is needed",
                got=order.tolist(),
                expected=f"{self.batch} of them",
            )
        if self._engine.on_device:
            self._state = {
                name: array.take(order.tolist(), 0) for name, array in self._state.items()
            }
            return
        for array in self._state.values():
            array[:, : self.position] = array[order, : self.position]

    def rewind(self, position: int = 0) -> None:
        """Forget all tokens from a position on.

        Raises:
            InputError: a position beyond the present one.
        """
        if not isinstance(position, int | np.integer) or not 0 <= position <= self.position:
            raise InputError("can't rewind there", got=position, expected=f"0 to {self.position}")
        self._position[0] = position

    def advance(self, tokens: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Run one step in place; called by the session, which checks the tokens."""
        if self.position >= self.length:
            raise InputError(
                "the state is full",
                got=f"{self.position} tokens",
                expected=f"at most {self.length}",
            )
        self.tokens[...] = tokens
        if self._engine.on_device:
            self._advance_on_device()
            self._position[0] += 1
            return self._outputs
        if self._binding is None:
            first = dict(
                zip(self._engine.boundary[1], self._engine.run_mixed(self._feeds), strict=True)
            )
            self._outputs = {
                n: np.ascontiguousarray(a) for n, a in first.items() if not n.startswith(NEXT)
            }
            # A state's next value is written where it is: the engine then changes one row and
            # copies nothing.
            ends = [
                self._state[STATE + n.removeprefix(NEXT)]
                if n.startswith(NEXT)
                else self._outputs[n]
                for n in first
            ]
            self._binding = self._engine.bind(self._feeds, ends)
        self._engine.run_bound(self._binding)
        self._position[0] += 1
        return self._outputs

    def _advance_on_device(self) -> None:
        """The state stays on the GPU; nothing in it changes unless the whole step went well."""
        kept = {NEXT + name.removeprefix(STATE): array for name, array in self._other.items()}
        made = self._engine.run_into({**self._feeds, **self._state}, kept)
        named = dict(zip(self._engine.boundary[1], made, strict=True))
        self._outputs = {name: array for name, array in named.items() if name not in kept}
        self._state, self._other = self._other, self._state
