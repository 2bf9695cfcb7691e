"""Which of the things seen in an eager run come to its outputs.

Rules:

1. What an operator makes depends on what its tensors depend on, and on what is seen at it.
2. Tensors are told by their storage: what is written into a view is in the whole.
3. A number that is read out of a tensor leads anywhere: what it depends on counts as reaching.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["Flow"]


class Flow:
    """What each storage depends on, by numbers of things seen."""

    def __init__(self) -> None:
        self._of: dict[int, frozenset[int]] = {}
        self._read: frozenset[int] = frozenset()

    def note(self, inputs: Iterable[Any], outputs: Iterable[Any], seen: Iterable[int]) -> None:
        """An operator ran.

        Args:
            inputs, outputs: its tensors, among other things.
            seen: numbers of the things that were seen at it.
        """
        sources = {_storage(value) for value in inputs if isinstance(value, Tensor)}
        made = [value for value in outputs if isinstance(value, Tensor)]
        behind = frozenset(seen).union(*(self._of.get(source, ()) for source in sources))
        for storage in map(_storage, made):
            shared = self._of.get(storage, frozenset()) if storage in sources else frozenset()
            self._of[storage] = behind | shared
        if not made:
            self._read |= behind

    def behind(self, outputs: Iterable[Tensor]) -> frozenset[int]:
        """The things that these depend on."""
        return self._read.union(*(self._of.get(_storage(output), ()) for output in outputs))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
