"""Long JSON, read and written in a process of its own: while Python parses it, no thread of the
process does anything else, and every other client would wait."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from crossfuse.core.processes import PARENT, end_with_parent
from crossfuse.serve.limits import Limits
from crossfuse.serve.open_inference import Call, encode_outputs, parse_call

__all__ = ["LONG", "Apart"]

_LOG = logging.getLogger("ray.serve")
_T = TypeVar("_T")

LONG = 1 << 16
"""JSON, and outputs, of more bytes than this are long."""


class Apart:
    """Reads calls and writes answers: short ones here, long ones apart; for one event loop.

    Args:
        limits: of calls.
        model: its name, in answers.
    """

    def __init__(self, limits: Limits, model: str) -> None:
        self._limits = limits
        self._model = model
        self._pool: ProcessPoolExecutor | None = None

    async def parse(self, body: bytes, length: int | None) -> Call:
        """As `parse_call`.

        Raises:
            InputError: as `parse_call`.
        """
        text = len(body) if length is None else length
        if LONG < text <= self._limits.max_json_bytes:
            return await self._apart(parse_call, body, length, self._limits)
        return parse_call(body, length, self._limits)

    async def encode(
        self, outputs: Mapping[str, NDArray[Any]], call: Call
    ) -> tuple[bytes, int | None]:
        """As `encode_outputs`.

        Raises:
            InputError: as `encode_outputs`.
        """
        bare = replace(call, inputs={})
        long = sum(array.nbytes for array in outputs.values()) > LONG
        written = call.requested or dict.fromkeys(outputs, call.binary)
        if long and not all(written.values()):
            return await self._apart(_encoded, outputs, bare, self._model)
        if long:
            return await asyncio.to_thread(_encoded, outputs, bare, self._model)
        return _encoded(outputs, bare, self._model)

    def close(self) -> None:
        """End the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _apart(self, work: Callable[..., _T], *arguments: object) -> _T:
        """The work's result, from the other process; from a new one where that died."""
        loop = asyncio.get_running_loop()
        for _ in range(2):
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, multiprocessing.get_context("spawn"), _begin, (os.getpid(),)
                )
            pool = self._pool
            try:
                return await loop.run_in_executor(pool, work, *arguments)
            except BrokenProcessPool:
                _LOG.warning("the process for long JSON died; another one takes its place")
                if self._pool is pool:
                    self.close()
        return await asyncio.to_thread(work, *arguments)


def _begin(parent: int) -> None:
    os.environ[PARENT] = str(parent)
    end_with_parent()


def _encoded(
    outputs: Mapping[str, NDArray[Any]], call: Call, model: str
) -> tuple[bytes, int | None]:
    return encode_outputs(outputs, call, model=model)
