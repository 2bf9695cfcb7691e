"""`Slots`: a decoding state that sequences join and leave while others go on, each over a context
of its own, in memory of fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.foreign import door
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context, require_own
from crossfuse.runtime.decoding import DecodingState
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.input_checks import positions_of
from crossfuse.runtime.session import Session
from crossfuse.runtime.slot_checks import context_axes, misfit, require_slots
from crossfuse.runtime.state_memory import StateMemory
from crossfuse.runtime.token_rows import TokenRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Slots"]

Outputs = Mapping[str, "NDArray[Any]"]


class Slots:
    """Slots of one decoding state. A sequence joins a free one with its own context, and gives the
    outputs that it would give alone. For one thread at a time.

    Args:
        session: of a bundle that decodes.
        like: a context; those that join have its sizes.
        count: how many sequences there can be at once.

    Attributes:
        count: as given.
        session: as given.
        state: the sequences.

    All memory is taken here: `bytes_of` says before how much it is.

    Raises:
        InputError: a bundle that can't decode, or whose step stage has one position for all
            sequences, or contexts that can't stand side by side.
    """

    @door
    def __init__(self, session: Session, like: Context, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise InputError("the number of slots has to be positive", got=repr(count))
        self._engine = require_slots(session, like)
        self.session, self.count = session, count
        self._axes = context_axes(session, like)
        self._taken = [False] * count
        tensors = {name: self._room_for(like.tensors[name], axis, count)
                   for name, axis in self._axes.items()}  # fmt: skip
        specs = tuple(spec for spec in like.specs if spec.name in tensors)
        own = replace(
            like, tensors=MappingProxyType(tensors), specs=specs, count=count, before=None
        )
        self.state: DecodingState = session.start(own, count)
        # Rows of some sequences are memory of their own only where each tensor begins with them.
        outputs = session.stages["step"].outputs
        self._splits = (
            not self._engine.on_device
            and not any(self._axes.values())
            and all(spec.shape and isinstance(spec.shape[0], str) for spec in outputs)
        )
        self._parts: dict[int, DecodingState] = {count: self.state}

    @staticmethod
    def bytes_of(session: Session, like: Context, count: int) -> int:
        """What so many slots for contexts of this size take: their states and contexts. Outputs
        and what the engine needs for a run come on top.

        Raises:
            InputError: as of the class.
        """
        engine = require_slots(session, like)
        axes = context_axes(session, like)
        contexts = sum(int(like.tensors[n].nbytes) for n, a in axes.items() if a is not None)
        states = StateMemory.bytes_of(engine, session.stages["step"].inputs, count)
        return contexts // like.count * count + states

    @property
    def nbytes(self) -> int:
        """Bytes of the states and contexts of all slots."""
        own = self.state.context.tensors
        kept = (own[name] for name, axis in self._axes.items() if axis is not None)
        return self.state.nbytes + sum(int(tensor.nbytes) for tensor in kept)

    @property
    def free(self) -> list[int]:
        """Slots that nobody has, ascending."""
        return [slot for slot, taken in enumerate(self._taken) if not taken]

    @property
    def taken(self) -> list[int]:
        """The others."""
        return [slot for slot, taken in enumerate(self._taken) if taken]

    def fits(self, context: Context) -> bool:
        """Whether contexts have the size of the slots'."""
        return misfit(self.state.context, context, self._axes) is None

    @door
    def join(
        self,
        contexts: Context | Sequence[Context],
        prompt: object,
        lengths: object = None,
        *,
        mask: object = None,
    ) -> tuple[list[int], Outputs]:
        """Give sequences a slot each, and compute their prompts; the others stay as they are.

        Args:
            contexts: of the same bundle and target; several are taken one behind the other.
            prompt, lengths, mask: as of :func:`runtime.generate`; as many prompts as contexts, or a
                multiple of them; one row alone is each context's.

        Returns:
            the slots, and outputs by name at each prompt's last token, ``[prompts, 1, …]``.

        Raises:
            InputError: fewer free slots than sequences, a context of another size or another
                bundle, or prompts that don't fit. Nothing has joined then.
        """
        each = self._looked_at(contexts)
        rows = TokenRows.of(prompt, lengths, mask)
        if rows.batch == 1:
            rows = TokenRows.of(prompt, lengths, mask, len(each))
        if rows.batch % len(each):
            raise InputError(
                "each context needs equally many prompts",
                got=f"{rows.batch} prompts, {len(each)} contexts",
            )
        if not rows.lengths.all():
            raise InputError("a prompt is empty", where=f"prompt[{int(rows.lengths.argmin())}]")
        slots = self._take(rows.batch)
        try:
            for row, slot in enumerate(slots):
                self._put(slot, *each[row * len(each) // len(slots)])
            return slots, self._prefilled(slots, rows)
        except BaseException:
            self.leave(slots)
            raise

    @door
    def step(self, tokens: Mapping[int, int]) -> Outputs:
        """Give some sequences their next token, in one run; the others stay as they are.

        Args:
            tokens: ids by slot.

        Returns:
            outputs by name, ``[slots, 1, …]``: row ``i`` is slot ``i``'s, where it got a token.
            The next run overwrites them.

        Raises:
            InputError: no tokens, a slot that nobody has, an id outside the table, or a sequence
                that is as long as it can be.
        """
        if not tokens or not all(0 <= slot < self.count and self._taken[slot] for slot in tokens):
            raise InputError(
                "a step takes the next tokens of sequences that have joined",
                got=f"slots {sorted(tokens)}",
                expected=f"slots {self.taken}",
            )
        state = self._first(max(tokens) + 1)
        ids, counts = np.zeros((state.batch, 1), np.int64), np.zeros(state.batch, np.int64)
        for slot, token in tokens.items():
            ids[slot], counts[slot] = token, 1
        return state.append(ids, counts)

    @door
    def leave(self, slots: Sequence[int]) -> None:
        """Free slots; what they hold is forgotten when the next sequences join.

        Raises:
            InputError: no such slots.
        """
        self.state.free(slots)
        for slot in positions_of(slots).tolist():
            self._taken[slot] = False

    def compact(self) -> dict[int, int]:
        """Move the last sequences into free slots in front of them. A step computes all slots up to
        the last that takes part, so fewer are computed for nothing.

        Returns:
            the new slots of those that moved, by their old ones.
        """
        moved: dict[int, int] = {}
        if not self._splits:
            return moved
        for old, new in zip(reversed(self.taken), self.free, strict=False):
            if new > old:
                break
            self._put(new, self.state.context, old)
            self._part(slice(new, new + 1), binds=False).take(self.state, np.array([old]))
            self._taken[new] = True
            moved[old] = new
        self.leave(list(moved))
        return moved

    def _looked_at(self, contexts: Context | Sequence[Context]) -> list[tuple[Context, int]]:
        """Each context, and which it is of those that it was encoded with."""
        given = [contexts] if isinstance(contexts, Context) else list(contexts)
        for context in given:
            require_own(context, self.session.owner)
            error = misfit(self.state.context, context, self._axes)
            if error is not None:
                raise error
        if not given:
            raise InputError("sequences join with their contexts", got="none")
        return [(context, index) for context in given for index in range(context.count)]

    def _take(self, count: int) -> list[int]:
        free = self.free
        if len(free) < count:
            raise InputError(
                "the slots are full",
                got=f"{count} more sequences",
                expected=f"at most {len(free)}: {self.count - len(free)} of {self.count} are taken",
                do="Let some leave first, or make more slots",
            )
        for slot in free[:count]:
            self._taken[slot] = True
        return free[:count]

    def _prefilled(self, slots: list[int], rows: TokenRows) -> Outputs:
        """Outputs at the last token of each prompt, in the prompts' order."""
        if not self._splits:
            prompts: list[list[int]] = [[] for _ in range(self.count)]
            for slot, ids, length in zip(slots, rows.ids, rows.lengths, strict=True):
                prompts[slot] = ids[:length].tolist()
            made = self.state.append(prompts)
            return {name: array[slots, -1:] for name, array in made.items()}
        found: list[Outputs] = []
        for first, last in _runs(slots):
            chosen = slice(slots.index(first), slots.index(last) + 1)
            state = self._part(slice(first, last + 1), binds=False)
            made = state.append(rows.ids[chosen], rows.lengths[chosen])
            found.append({name: array[:, -1:] for name, array in made.items()})
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _first(self, count: int) -> DecodingState:
        """The first slots, which one run computes: as few as hold those that are asked for."""
        if not self._splits:
            return self.state
        if count not in self._parts:
            self._parts[count] = self._part(slice(0, count), binds=True)
        return self._parts[count]

    def _part(self, rows: slice, *, binds: bool) -> DecodingState:
        own = self.state.context
        tensors = {n: t if self._axes[n] is None else t[rows] for n, t in own.tensors.items()}
        part = replace(own, tensors=tensors, count=rows.stop - rows.start, before=None)
        return self.state.part(part, rows, binds=binds)

    def _room_for(self, tensor: Any, axis: int | None, count: int) -> Any:
        """Memory for one tensor of all slots' contexts; itself where it is of none."""
        if axis is None:
            return tensor
        shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
        if isinstance(tensor, DeviceArray):
            return self._engine.empty(shape, tensor.dtype).zero()
        return np.zeros(shape, tensor.dtype)

    def _put(self, slot: int, context: Context, index: int) -> None:
        """Copy a context into a slot, and forget what the last sequence there held."""
        for name, axis in self._axes.items():
            if axis is None:
                continue
            own, given = self.state.context.tensors[name], context.tensors[name]
            if isinstance(own, DeviceArray):
                own.put(slot, given, index, axis)
            else:
                np.moveaxis(own, axis, 0)[slot] = np.moveaxis(given, axis, 0)[index]
        self.state.memory.clear(slot)


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of ascending numbers that follow each other."""
    ends = np.flatnonzero(np.diff(slots, append=slots[-1] + 2) != 1)
    begins = [0, *(ends[:-1] + 1).tolist()]
    for begin, end in zip(begins, ends.tolist(), strict=True):
        yield slots[begin], slots[end]
