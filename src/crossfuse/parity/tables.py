"""Which inputs are ids, and of which table: seen in one eager run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crossfuse.export.capture.operator_watch import OperatorWatch
from crossfuse.spec.imitation import Table

__all__ = ["tables_seen"]

_EXTREMES = 4
"""How many rows of the largest magnitudes."""

_LOOKUPS = {"aten::embedding": (0, 1), "aten::index_select": (0, 2), "aten::index": (0, 1)}
"""Operator → positions of the table and of the ids."""


@contextmanager
def tables_seen(module: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Table]]:
    """What each integer input looks up, by name, when the module is run inside.

    The result is filled when the context ends.

    A table is a parameter or buffer of the module. An input is ids of it where an operator is given
    them, or a part of them, as they are but for their shape, dtype and negative values. Of several
    tables the smallest counts, so that no id is outside one.
    """
    given = {
        name: t
        for name, t in inputs.items()
        if not t.is_floating_point() and t.dtype != torch.bool and t.numel()
    }
    watch = _Watch(
        given, {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    )
    found: dict[str, Table] = {}
    with watch:
        yield found
    for name, table in watch.found.items():
        magnitudes = table.detach().reshape(table.shape[0], -1).abs().amax(-1)
        largest = torch.topk(magnitudes, min(_EXTREMES, table.shape[0])).indices
        found[name] = Table(table.shape[0], tuple(largest.tolist()))


class _Watch(OperatorWatch):
    def __init__(self, inputs: Mapping[str, Tensor], storages: set[int]) -> None:
        super().__init__()
        self.inputs = inputs
        self.storages = storages
        self.found: dict[str, Tensor] = {}

    def watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        places = _LOOKUPS.get(func.name().partition(".")[0])
        if places is not None and len(args) > places[1]:
            table, ids = args[places[0]], args[places[1]]
            if isinstance(ids, list | tuple):
                ids = ids[0] if len(ids) == 1 else None
            known = table.untyped_storage().data_ptr() in self.storages
            if (
                known
                and isinstance(ids, Tensor)
                and table.is_floating_point()
                and not ids.is_floating_point()
            ):
                self._note(table, ids)
        return func(*args, **kwargs)

    def _note(self, table: Tensor, ids: Tensor) -> None:
        for name, given in self.inputs.items():
            known = self.found.get(name)
            if (known is None or table.shape[0] < known.shape[0]) and _are(given, ids):
                self.found[name] = table


def _are(given: Tensor, ids: Tensor) -> bool:
    """The ids are the input, or a view of it."""
    if ids.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
        return True
    if ids.numel() != given.numel() or ids.dtype == torch.bool:
        return False
    flat, taken = given.reshape(-1).long(), ids.reshape(-1).long()
    usable = flat >= 0
    return (
        bool((flat[usable] == taken[usable]).all())
        and bool(usable.any())
        and int(flat[usable].max()) > 0
    )
