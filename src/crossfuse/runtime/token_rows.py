"""`TokenRows`: new tokens of a batch of sequences, as callers give them (padded left or right, or
lists of different lengths), and as a step stage takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.core.foreign import cause_of
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TokenRows", "common"]


class TokenRows(NamedTuple):
    """Tokens of each sequence, from the first column on.

    Attributes:
        ids: ``[batch, longest]`` integers.
        lengths: ``[batch]``: how many of each row count; the others are padding.
        order: ``[batch, longest]``: the column of what was given that each came from.
        width: how many columns were given.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    order: NDArray[np.int64]
    width: int

    @classmethod
    def of(
        cls, tokens: object, lengths: object = None, mask: object = None, batch: int | None = None
    ) -> TokenRows:
        """Read what a caller gives.

        Args:
            tokens: ids ``[batch, tokens]``, or one list of ids per sequence; one list of ids alone
                is one sequence.
            lengths: how many of each row count, where rows are padded on the right.
            mask: ``[batch, tokens]``, nonzero where a token counts, wherever the padding is; in
                place of ``lengths``.
            batch: how many sequences there have to be; a single row is then all sequences'.

        Raises:
            InputError: no whole numbers, lengths or a mask that don't fit, a gap in a row, or
                another number of sequences.
        """
        ids, counts = _matrix(tokens)
        if lengths is not None and mask is not None:
            raise InputError("lengths and a mask say the same: give one of them")
        if batch is not None and ids.shape[0] == 1 != batch:
            ids, counts = np.repeat(ids, batch, 0), np.repeat(counts, batch)
        if batch is not None and ids.shape[0] != batch:
            raise InputError(
                "each sequence needs its tokens",
                got=f"{ids.dtype}{list(ids.shape)}",
                expected=f"[{batch}, tokens]",
            )
        order = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).astype(np.int64)
        if lengths is not None:
            counts = _lengths(lengths, ids)
        elif mask is not None:
            order, counts = _compacted(mask, ids)
        width, order = ids.shape[1], order[:, : int(counts.max())]
        return cls(np.take_along_axis(ids, order, 1), counts, order, width)

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return int(self.ids.shape[0])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """``[batch, longest]``: which ids are no padding."""
        found: NDArray[np.bool_] = np.arange(self.ids.shape[1]) < self.lengths[:, None]
        return found

    def beside(self, name: str, given: object, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What the caller gives beside the tokens, in their order; ones where it is None.

        Raises:
            InputError: not one element per token.
        """
        if given is None:
            return np.ones(self.ids.shape, dtype)
        array = np.asarray(given)
        if array.shape != (self.batch, self.width):
            raise InputError(
                "what is beside the tokens has an element for each",
                where=name,
                got=list(array.shape),
                expected=[self.batch, self.width],
            )
        return np.take_along_axis(array, self.order, 1).astype(dtype)


def _matrix(tokens: object) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids with as many rows as there are sequences, padded with zeros, and the rows' lengths."""
    if isinstance(tokens, Mapping | str):
        raise InputError("token ids can't be read", got=type(tokens).__name__)
    rows: list[NDArray[Any]] = []
    try:
        if isinstance(tokens, Sequence) and any(np.ndim(row) for row in tokens):
            rows = [np.asarray(row).reshape(-1) for row in tokens]
        else:
            array = np.asarray(tokens)
            rows = list(array.reshape(1, -1) if array.ndim < 2 else array)
    except Exception as error:  # a ragged list, or another library's code
        raise InputError(
            f"token ids can't be read: {cause_of(error)}", got=type(tokens).__name__
        ) from error
    wrong = [row for row in rows if row.ndim != 1 or (row.size and row.dtype.kind not in "iu")]
    if wrong or not rows:
        raise InputError(
            "token ids are whole numbers, one row per sequence",
            got=f"{wrong[0].dtype}{list(wrong[0].shape)}" if wrong else "nothing",
        )
    counts = np.array([row.size for row in rows], np.int64)
    ids = np.zeros((len(rows), int(counts.max())), np.int64)
    for row, given in zip(ids, rows, strict=True):
        row[: given.size] = given
    return ids, counts


def _lengths(given: object, ids: NDArray[Any]) -> NDArray[np.int64]:
    counts = np.asarray(given).reshape(-1)
    fits = counts.shape == ids.shape[:1] and counts.dtype.kind in "iu"
    if not fits or counts.min() < 0 or counts.max() > ids.shape[1]:
        raise InputError(
            "lengths say how many tokens of each row count",
            got=counts.tolist(),
            expected=f"{ids.shape[0]} numbers from 0 to {ids.shape[1]}",
        )
    return counts.astype(np.int64)


def _compacted(given: object, ids: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns that count first, in their order, and how many they are."""
    counted = np.asarray(given) != 0
    if counted.shape != ids.shape:
        raise InputError(
            "a mask has an element per token", got=list(counted.shape), expected=list(ids.shape)
        )
    changes = np.diff(np.pad(counted, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    gaps = np.flatnonzero((changes == 1).sum(1) > 1)
    if gaps.size:
        raise InputError(
            "padding stands between tokens that count",
            where=f"mask[{int(gaps[0])}]",
            expected="padding on the left or on the right",
        )
    order = np.argsort(~counted, axis=1, kind="stable")
    return order.astype(np.int64), counted.sum(1).astype(np.int64)


def common(
    tables: Iterable[NDArray[Any]],
    lengths: NDArray[np.int64],
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
) -> int:
    """How many first columns each of some rows shares with its counterpart, at least.

    Args:
        tables: ``[batch, longest]`` each; all of them have to agree.
        lengths: ``[batch]``: how many columns of each row count.
        rows, others: pairs of rows.
    """
    if not rows.size:
        return 0
    width = int(np.minimum(lengths[rows], lengths[others]).min())
    differs = np.zeros(width, bool)
    for table in tables:
        differs |= (table[rows, :width] != table[others, :width]).any(0)
    return int(differs.argmax()) if differs.any() else width
