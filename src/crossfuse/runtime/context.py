"""`Context`: what a context stage computed, kept for many queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.dimensions import symbols_in
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.context_files import Of, refuse_pickling, save_tensors
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.input_checks import positions_of

__all__ = ["Context", "frozen", "require_own"]


@dataclass(frozen=True)
class Context:
    """Encoded contexts: tensors by name, immutable, usable from several threads at once.

    Attributes:
        tensors: what the query stage takes; read-only NumPy arrays, or arrays on the device.
        specs: of the tensors.
        count: how many contexts there are.
        batch: the dimension that counts them, or None where the context inputs have no batch.
        owner: which bundle and target computed them; a session of another one refuses them.
        input_sizes: of the context inputs' named dimensions.
        before: ``[contexts, tokens]``: ids in front of every prompt, where they are an input of the
            context; what is chosen by the tokens so far goes by them, too.
    """

    tensors: Mapping[str, Any]
    specs: tuple[TensorSpec, ...]
    count: int
    batch: str | None
    owner: str
    input_sizes: Mapping[str, int] = field(default_factory=dict)
    before: NDArray[np.int64] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the context inputs' named dimensions, which queries have to share."""
        return {**self.input_sizes, **({} if self.batch is None else {self.batch: self.count})}

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(int(tensor.nbytes) for tensor in self.tensors.values())

    def __len__(self) -> int:
        return self.count

    def select(self, indices: Sequence[int]) -> Context:
        """The contexts at these positions, in this order, copied; positions may repeat.

        Raises:
            InputError: no positions, one out of range, or contexts without a batch.
            EngineError: no room on the GPU.
        """
        chosen = positions_of(indices)
        if self.batch is None:
            raise InputError("these contexts have no batch to select from")
        if not chosen.size or chosen.min() < -self.count or chosen.max() >= self.count:
            raise InputError(
                "positions out of range", got=chosen.tolist(), expected=f"0 to {self.count - 1}"
            )
        taken: dict[str, Any] = {}
        for spec in self.specs:
            tensor = self.tensors[spec.name]
            if self.batch not in spec.shape:
                if any(self.batch in symbols_in(size) for size in spec.shape):
                    raise InputError(
                        "a context tensor's batch is no axis of its own", where=spec.name, got=spec
                    )
                taken[spec.name] = tensor
                continue
            axis = spec.shape.index(self.batch)
            on_device = isinstance(tensor, DeviceArray)
            taken[spec.name] = (
                tensor.select(chosen.tolist(), axis)
                if on_device
                else frozen(np.take(tensor, chosen, axis=axis))
            )
        before = None if self.before is None else frozen(self.before[chosen])
        return replace(self, tensors=taken, count=int(chosen.size), before=before)

    @property
    def before_count(self) -> int:
        """How many ids stand in front of every prompt, as far as they are known."""
        return 0 if self.before is None else int(self.before.shape[1])

    def before_each(self, sequences: int) -> NDArray[np.int64] | None:
        """``before`` of so many sequences, equally many over each context."""
        return None if self.before is None else self.before.repeat(sequences // self.count, 0)

    def of_rows(self, rows: NDArray[np.int64], batch: int) -> Context:
        """Those that some of a batch of sequences over the contexts look at: each once where it
        gets as many as the others, side by side, else one for each."""
        if self.batch is None or self.count == 1:
            return self
        each = rows // (batch // self.count)
        ends = np.flatnonzero(np.diff(each, append=-1)) + 1
        sizes = np.diff(ends, prepend=0)
        chosen = each[ends - 1] if (sizes == sizes[0]).all() else each
        return (
            self if np.array_equal(chosen, np.arange(self.count)) else self.select(chosen.tolist())
        )

    def save(self, path: str | Path) -> None:
        """Write the contexts to a safetensors file, whole or not at all, for
        :meth:`Session.load_context` of the same bundle and target.

        Raises:
            InputError: the file can't be written.
        """
        about = Of(self.owner, self.count, self.input_sizes, self.before)
        save_tensors(Path(path), self.tensors, about)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        refuse_pickling(
            "a context", "Write it with context.save(path), and read it with session.load_context"
        )

    def __repr__(self) -> str:
        return (
            f"<crossfuse Context: {self.count} contexts, {self.nbytes / 1e6:.2f} MB in "
            f"{len(self.tensors)} tensors>"
        )


def frozen(array: Any) -> Any:
    """The array, made read-only where it is NumPy's."""
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array


def require_own(context: Context, owner: str) -> None:
    """Refuse what isn't a context of this bundle and target.

    Raises:
        InputError: no context, or one that another bundle or target encoded.
    """
    if not hasattr(context, "owner"):
        got = type(context).__name__
        raise InputError(
            "a query needs an encoded context", got=got, do="Call session.encode(...) first"
        )
    if context.owner != owner:
        raise InputError(
            "the context was encoded by another bundle or target",
            do="Encode it with the same session",
        )
