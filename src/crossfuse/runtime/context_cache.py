"""`ContextCache`: contexts by the content of their inputs, least recently used ones dropped first,
bounded in bytes."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.foreign import cause_of
from crossfuse.errors import InputError
from crossfuse.runtime.context import Context

if TYPE_CHECKING:
    from crossfuse.runtime.session import Session

__all__ = ["ContextCache", "content_key"]

_LOG = logging.getLogger(__name__)


class ContextCache:
    """Encodes a context once and gives it again while it stays within the budget.

    Safe to use from several threads.

    Args:
        session: of a split bundle.
        max_bytes: what all kept contexts may take together. A context that is larger by itself is
            not kept.

    Two calls with equal inputs at the same time encode once; the second waits for the first.
    """

    def __init__(self, session: Session, max_bytes: int) -> None:
        if not isinstance(max_bytes, int) or max_bytes < 1:
            raise InputError(
                "a cache's budget must be a positive number of bytes", got=repr(max_bytes)
            )
        self.session = session
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[bytes, Context] = OrderedDict()
        self._coming: dict[bytes, Future[Context]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def encode(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> Context:
        """As :meth:`Session.encode`, from the cache where equal inputs were encoded before.

        Raises:
            InputError: as :meth:`Session.encode`.
        """
        given = self.session.given(inputs, named)
        return self.encode_as(content_key(given), given)

    def find(self, key: bytes) -> Context | None:
        """What is kept under a key of `content_key`, or None."""
        with self._lock:
            return self._hit(key)

    def _hit(self, key: bytes) -> Context | None:
        """What is kept under a key, counted and made the latest; the caller holds the lock."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            self.hits += 1
        return found

    def encode_as(self, key: bytes, inputs: Mapping[str, Any]) -> Context:
        """As `encode`, for a caller who has the inputs' key already.

        Raises:
            InputError: as :meth:`Session.encode`.
        """
        with self._lock:
            found = self._hit(key)
            if found is not None:
                return found
            coming = self._coming.get(key)
            mine = coming is None
            if coming is None:
                coming = self._coming[key] = Future()
                self.misses += 1
            else:
                self.hits += 1
        if not mine:
            return coming.result()
        try:
            context = self.session.encode(inputs)
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            coming.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._keep(key, context)
        coming.set_result(context)
        return context

    def clear(self) -> None:
        """Drop all kept contexts; those in use stay alive with their users."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

    def _keep(self, key: bytes, context: Context) -> None:
        size = context.nbytes
        if size > self.max_bytes:
            _LOG.debug("a context of %d bytes is larger than the cache", size)
            return
        while self.nbytes + size > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= dropped.nbytes
            _LOG.debug("a context of %d bytes makes way for another", dropped.nbytes)
        self._kept[key] = context
        self.nbytes += size


def content_key(inputs: Mapping[str, Any]) -> bytes:
    """A digest of names, dtypes, shapes and content of host arrays.

    Raises:
        InputError: an input that is not in host memory.
    """
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(inputs):
        value = inputs[name]
        try:
            known = isinstance(value, np.ndarray | np.generic | bool | int | float)
            array = np.ascontiguousarray(value if known else np.from_dlpack(value))
        except Exception as error:  # another library's code
            raise InputError(
                f"a cached context's inputs must be in host memory: {cause_of(error)}", where=name
            ) from error
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.digest()
