"""A replica: a process with a session, a cache of contexts and a queue that becomes batches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve import metrics

from crossfuse.errors import CrossfuseError
from crossfuse.serve.load_engine import open_engine
from crossfuse.serve.metrics import BATCHES, SECONDS
from crossfuse.serve.rayserve.loopback import keep_on_loopback
from crossfuse.serve.rayserve.options import ServeOptions
from crossfuse.serve.request_engine import Answer, Request, UnexpectedError, UnknownContextError

__all__ = ["Replica", "said"]


class Replica:
    """Answers requests; several at once where their contexts and shapes allow."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        chosen = ServeOptions.from_json(options)
        self._engine = open_engine(
            chosen.bundle, chosen.replicas_engine, limits=chosen.limits, meter=_Metrics()
        )
        keep_on_loopback()
        # One batch at a time: the session's threads are the replica's cores.
        self._pool = ThreadPoolExecutor(1)
        self._batch.set_max_batch_size(chosen.batch_size)
        self._batch.set_batch_wait_timeout_s(chosen.batch_wait_ms / 1000)

    async def answer(
        self, inputs: Mapping[str, NDArray[Any]], context_id: str | None, key: bytes | None
    ) -> tuple[int, dict[str, NDArray[Any]] | str]:
        """Status and outputs, or status and what was wrong."""
        return said(await self._batch(Request(inputs, context_id, key)))

    async def ready(self) -> bool:
        """Answers once the constructor has: the bundle is loaded and has answered its reference
        inputs."""
        return True

    @serve.batch  # type: ignore[untyped-decorator]
    async def _batch(self, requests: list[Request]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._engine.answer, requests
        )


def said(answer: Answer) -> tuple[int, dict[str, NDArray[Any]] | str]:
    """An engine's answer as a status, and outputs or what was wrong."""
    if isinstance(answer, UnexpectedError):
        return 500, "the server failed; its log says why."
    if isinstance(answer, CrossfuseError):
        return 404 if isinstance(answer, UnknownContextError) else 400, str(answer)
    return 200, answer


class _Metrics:
    """Ray exports these from every node, tagged with application, deployment and replica."""

    def __init__(self) -> None:
        about = "Time of a stage's executions"
        self._seconds = metrics.Histogram(
            "crossfuse_stage_seconds", about, boundaries=list(SECONDS), tag_keys=("stage",)
        )
        bounds = [float(np.nextafter(size, np.inf)) for size in BATCHES]
        self._rows = metrics.Histogram(
            "crossfuse_batch_rows", "Queries answered by one call", boundaries=bounds
        )
        self._lookups = {
            True: metrics.Counter("crossfuse_context_cache_hits", "Contexts found in the cache"),
            False: metrics.Counter("crossfuse_context_cache_misses", "Contexts encoded"),
        }
        self._bytes = metrics.Gauge("crossfuse_context_cache_bytes", "Bytes of kept contexts")
        self._bytes.set(0)

    def stage(self, name: str, seconds: float) -> None:
        self._seconds.observe(seconds, tags={"stage": name})

    def batch(self, rows: int) -> None:
        self._rows.observe(float(rows))

    def cache(self, hit: bool, nbytes: int, kept: int) -> None:
        self._lookups[hit].inc()
        self._bytes.set(nbytes)
