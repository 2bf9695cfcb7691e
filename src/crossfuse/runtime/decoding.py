"""`DecodingState`: sequences that grow by one or more tokens at a time, each at its own length, and
their self-attention keys and values in memory of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from crossfuse.core.tensors import POSITION, STATE, TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.context_files import refuse_pickling
from crossfuse.runtime.input_checks import check_indices, positions_of
from crossfuse.runtime.state_memory import StateMemory
from crossfuse.runtime.token_rows import TokenRows, common

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.stage import Stage

__all__ = ["DecodingState"]


class DecodingState:
    """Sequences being decoded over a context, by :meth:`Session.step`. For one thread at a time.

    Args:
        context: what the sequences look at.
        engine: the step stage.
        inputs: its specs.
        tokens: its input of ids.
        batch: how many sequences there are; a multiple of the contexts.
        length: the most tokens that one of them can have.

    Attributes:
        context, batch, length: as given.
        ids: ``[batch, length]``: their tokens; what is behind a sequence's position means nothing.
        beside: names of the inputs beside the ids, with one element per token, such as a mask.
        outputs: of the last run, by name; ``[batch, tokens, …]``.

    The state's tensors are made once, where the engine computes.
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
        self._engine, self._inputs = engine, inputs
        specs = {spec.name: spec for spec in inputs}
        self._token = specs[tokens]
        self._uniform = specs[POSITION].shape == (1,)
        self.beside: tuple[str, ...] = tuple(
            spec.name
            for spec in inputs
            if STATE + spec.name in specs and spec.name not in context.tensors
        )
        self._dtypes = {name: np.dtype(specs[name].dtype) for name in (tokens, *self.beside)}
        given = {name: tensor for name, tensor in context.tensors.items() if name in specs}
        self._given = frozenset(given)
        self.memory = StateMemory(engine, inputs, batch, given)
        self._positions: NDArray[np.int64] = np.zeros(batch, np.int64)
        self._record: dict[str, NDArray[Any]] = {
            name: np.zeros((batch, length), dtype) for name, dtype in self._dtypes.items()
        }
        self.outputs: Mapping[str, NDArray[Any]] = {}
        # Whether a sequence went on from one over another context.
        self._crossed = False

    @property
    def ids(self) -> NDArray[Any]:
        """``[batch, length]``: the tokens so far."""
        return self._record[self._token.name]

    @property
    def positions(self) -> NDArray[np.int64]:
        """``[batch]`` int64: how many tokens each sequence has by now."""
        return self._positions.copy()

    @property
    def position(self) -> int:
        """How many tokens each sequence has by now; the longest, where they differ."""
        return int(self._positions.max())

    @property
    def nbytes(self) -> int:
        """Bytes of the state's tensors, those of the context not counted."""
        return self.memory.nbytes

    def append(
        self,
        tokens: object,
        lengths: object = None,
        *,
        mask: object = None,
        beside: Mapping[str, object] | None = None,
    ) -> Mapping[str, NDArray[Any]]:
        """Give the sequences their next tokens, any number to each, and compute the outputs at
        them, all in one run.

        Args:
            tokens: ids ``[batch, tokens]``, or a list per sequence; one row alone is for all.
            lengths: how many of each row count, where rows are padded on the right; 0 leaves a
                sequence as it is.
            mask: ``[batch, tokens]``, nonzero where a token counts, wherever the padding is; in
                place of ``lengths``.
            beside: further inputs with an element per token, ``[batch, tokens]``; ones where
                omitted.

        Returns:
            outputs by name, ``[batch, tokens, …]``, with the padding last: those of a row from its
            length on are its last token's, so ``[:, -1]`` is each sequence's last. Those of one
            token per sequence are overwritten by the next run of one.

        Raises:
            InputError: tokens of another shape or outside the table, a state that would be more
                than full, or values that the engine refuses.
        """
        rows = TokenRows.of(tokens, lengths, mask, self.batch)
        check_indices(self._token, rows.ids[rows.counted])
        given = {self._token.name: rows.ids, **self._besides(rows, beside or {})}
        self._require_room(rows.lengths)
        if self._uniform:
            self.outputs = self._one_by_one(given, rows.lengths)
        else:
            self.outputs = self._at_once(given, rows)
        return self.outputs

    def append_one(
        self, ids: NDArray[Any], beside: Mapping[str, object]
    ) -> Mapping[str, NDArray[Any]]:
        """As `append`, of one id for each sequence.

        Raises:
            InputError: as `append`, or other than one.
        """
        if ids.shape[0] != self.batch or ids.dtype.kind not in "iu":
            raise InputError(
                "a step takes one id per sequence",
                got=f"{ids.dtype}{list(ids.shape)}",
                expected=self.batch,
                do="Give several at once to state.append",
            )
        return self.append(ids, beside=beside)

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
        self.take(self, order)

    def fork(self, indices: Sequence[int]) -> DecodingState:
        """A new state whose sequence ``i`` goes on from this one's sequence ``indices[i]``, over
        the same context; this one stays as it is.

        Where each context gets equally many sequences, side by side, contexts are not copied for
        each.

        Raises:
            InputError: no sequences, or none of these.
        """
        rows = positions_of(indices)
        if not rows.size or rows.min() < 0 or rows.max() >= self.batch:
            raise InputError(
                "no such sequences", got=rows.tolist(), expected=f"0 to {self.batch - 1}"
            )
        made = DecodingState(
            self.context.of_rows(rows, self.batch),
            self._engine,
            self._inputs,
            self._token.name,
            int(rows.size),
            self.length,
        )
        made.take(self, rows)
        return made

    def part(self, context: Context, rows: slice, *, binds: bool) -> DecodingState:
        """The sequences of some rows, as of :meth:`StateMemory.part`, over their own context."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        made.context, made.batch, made.outputs = context, context.count, {}
        given = {n: t for n, t in context.tensors.items() if n in self._given}
        made.memory = self.memory.part(rows, given, binds=binds)
        made._positions = self._positions[rows]
        made._record = {name: array[rows] for name, array in self._record.items()}
        return made

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Forget each sequence's tokens from a length on.

        Args:
            lengths: one for all sequences, which leaves shorter ones as they are, or one for each.

        Raises:
            InputError: a length beyond a sequence's own, or below 0.
        """
        if isinstance(lengths, int | np.integer):
            kept = np.minimum(self._positions, int(lengths))
        else:
            kept = positions_of(lengths)
        if kept.shape != self._positions.shape or kept.min() < 0 or (kept > self._positions).any():
            raise InputError(
                "can't truncate to these lengths",
                got=lengths,
                expected=f"at most {self._positions.tolist()}",
            )
        self._require_uniform(kept)
        self._positions[...] = kept

    def free(self, rows: Sequence[int]) -> None:
        """Empty these sequences: each is a slot that begins anew with the tokens that it gets next.

        Raises:
            InputError: no such sequences.
        """
        chosen = positions_of(rows)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.batch):
            raise InputError(
                "no such sequences", got=chosen.tolist(), expected=f"0 to {self.batch - 1}"
            )
        kept = self._positions.copy()
        kept[chosen] = 0
        self._require_uniform(kept)
        self._positions[...] = kept

    def rewind(self, position: int = 0) -> None:
        """Forget all tokens from a position on.

        Raises:
            InputError: a position beyond the present one.
        """
        if not isinstance(position, int | np.integer) or not 0 <= position <= self.position:
            raise InputError("can't rewind there", got=position, expected=f"0 to {self.position}")
        self.truncate(int(position))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        refuse_pickling(
            "a decoding state",
            "Write its context with context.save(path) and keep its ids, and begin anew with "
            "session.start(context, prompt=ids)",
        )

    def _besides(self, rows: TokenRows, given: Mapping[str, object]) -> dict[str, NDArray[Any]]:
        """What is beside the tokens, in their order."""
        unknown = sorted(set(given) - set(self.beside))
        if unknown:
            raise InputError(
                "no inputs beside the tokens have these names",
                got=", ".join(unknown),
                expected=", ".join(self.beside) or "none",
            )
        return {
            name: rows.beside(name, given.get(name), self._dtypes[name]) for name in self.beside
        }

    def _require_room(self, lengths: NDArray[np.int64]) -> None:
        if not lengths.any():
            raise InputError("no sequence gets a token", got=lengths.tolist())
        if (self._positions + lengths).max() > self.length:
            raise InputError(
                "the state is full",
                got=f"{self.position} tokens and {int(lengths.max())} more",
                expected=f"at most {self.length}",
            )

    def _require_uniform(self, lengths: NDArray[np.int64]) -> None:
        """Refuse lengths that differ where the step stage has one position for all."""
        if self._uniform and (lengths != lengths[0]).any():
            raise InputError(
                "the bundle's step stage has one position for all sequences",
                got=lengths.tolist(),
                do="Export the model again with this version of crossfuse",
            )

    def _at_once(
        self, given: Mapping[str, NDArray[Any]], rows: TokenRows
    ) -> dict[str, NDArray[Any]]:
        """One run. What pads a row is its last token again, at its place: it computes and writes
        what is there already."""
        index = np.minimum(np.arange(rows.ids.shape[1]), rows.lengths[:, None] - 1)
        places = np.maximum(self._positions[:, None] + index, 0)
        feeds: dict[str, NDArray[Any]] = {POSITION: places}
        sequence = np.nonzero(rows.counted)[0]
        for name, array in given.items():
            self._record[name][sequence, places[rows.counted]] = array[rows.counted]
            feeds[name] = np.take_along_axis(self._record[name], places, 1)
        made = self.memory.run(feeds)
        self._positions += rows.lengths
        return made

    def _one_by_one(
        self, given: Mapping[str, NDArray[Any]], lengths: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """A run for each token, of a stage that takes one at one position."""
        self._require_uniform(lengths)
        made: list[dict[str, NDArray[Any]]] = []
        count = int(lengths[0])
        for column in range(count):
            at = self._positions[:1].copy()
            feeds = {name: array[:, [column]] for name, array in given.items()}
            for name, array in feeds.items():
                self._record[name][:, at] = array
                feeds[name] = self._record[name][:, at]
            found = self.memory.run({**feeds, POSITION: at})
            self._positions += 1
            made.append(found if count == 1 else {n: a.copy() for n, a in found.items()})
        if count == 1:
            return made[0]
        return {name: np.concatenate([one[name] for one in made], 1) for name in made[0]}

    def take(self, source: DecodingState, rows: NDArray[np.int64]) -> None:
        """Sequence ``i`` goes on from the source's sequence ``rows[i]``."""
        self._crossed = source._crossed
        if source is self:
            into = np.flatnonzero(rows != np.arange(self.batch))
            each = self.batch // (1 if self.context.batch is None else self.context.count)
            self._crossed |= bool((into // each != rows[into] // each).any())
            # Sequences over one context that begin with the same tokens have the same state there.
            shared = common(self._record.values(), self._positions, into, rows[into])
            self.memory.move(into, rows[into], 0 if self._crossed else shared, self.position)
        else:
            self.memory.take(source.memory, rows, source.position)
        self._positions[...] = source._positions[rows]
        for name, array in source._record.items():
            self._record[name][...] = array[rows]
