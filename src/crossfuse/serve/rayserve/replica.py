"""A replica: a process with a session, a cache of contexts and a queue that becomes batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve import metrics

from crossfuse.bundle.store import open_bundle
from crossfuse.core.terminal import shown_traceback
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.runtime.generation.scheduler import QueueFullError
from crossfuse.runtime.processing import load_processor
from crossfuse.runtime.slots import Slots
from crossfuse.serve.generating import Asking, Generating, Stream, with_words
from crossfuse.serve.load_engine import open_engine
from crossfuse.serve.metrics import BATCHES, SECONDS
from crossfuse.serve.rayserve.loopback import keep_on_loopback
from crossfuse.serve.rayserve.news import News, pause
from crossfuse.serve.rayserve.options import ServeOptions
from crossfuse.serve.request_engine import (
    Answer,
    Request,
    RequestEngine,
    UnexpectedError,
    UnknownContextError,
)

__all__ = ["Replica", "said"]

_LOG = logging.getLogger("ray.serve")


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
        self._generating = _generating(self._engine, chosen) if chosen.slots else None
        # A few more than there are slots: their contexts are encoded when a slot gets free.
        self._room = asyncio.Semaphore(chosen.slots + 1 + chosen.slots // 4)
        self._cores = chosen.num_cpus
        self._batch.set_max_batch_size(chosen.batch_size)
        self._batch.set_batch_wait_timeout_s(chosen.batch_wait_ms / 1000)

    async def answer(
        self, inputs: Mapping[str, NDArray[Any]], context_id: str | None, key: bytes | None
    ) -> tuple[int, dict[str, NDArray[Any]] | str]:
        """Status and outputs, or status and what was wrong."""
        return said(await self._batch(Request(inputs, context_id, key)))

    async def generate(
        self, asking: Asking
    ) -> AsyncGenerator[tuple[int, dict[str, Any] | str], None]:
        """Statuses and events of a sequence as it comes, or a status and what was wrong. Whoever
        stops listening frees its slot."""
        if self._generating is None:
            yield 400, "the server generates no sequences of this bundle."
            return
        async with self._room, aclosing(self._events(self._generating, asking)) as events:
            async for event in events:
                yield event

    async def _events(
        self, generating: Generating, asking: Asking
    ) -> AsyncGenerator[tuple[int, dict[str, Any] | str], None]:
        loop, news = asyncio.get_running_loop(), News()
        beginning = loop.run_in_executor(self._pool, generating.begin, asking, news.notify)
        try:
            stream = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_unwanted)
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is this request's answer
            yield _told(error)
            return
        news.of(stream)
        try:
            while not stream.ended:
                await (news.last() if asking.whole else news.come())
                event = stream.take()
                if event is not None:
                    yield 200, event
                    # What comes meanwhile is one event, with the end that comes meanwhile.
                    await news.gather(pause(generating.engine.live, self._cores))
        except CrossfuseError as error:
            yield _told(error)
        finally:
            stream.cancel()

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


def _generating(requests: RequestEngine, options: ServeOptions) -> Generating:
    """What memory it will take is told here, and taken with the first sequence: who asks for none
    needs none."""
    bundle = open_bundle(options.bundle)
    inputs = smallest_inputs(bundle)
    if inputs is not None:
        session = requests.session
        like = session.encode({name: inputs[name] for name in requests.context_names})
        size = Slots.bytes_of(session, like, options.slots) / 1e6
        _LOG.info("the first sequence takes %.1f MB, for %d slots", size, options.slots)
    words = with_words(load_processor(bundle))
    return Generating(requests, options.slots, options.limits.max_queue, words)


def _told(error: Exception) -> tuple[int, str]:
    """Status and text of what went wrong with a sequence."""
    if isinstance(error, QueueFullError):
        return 503, "the queue is full. Try again later."
    if isinstance(error, UnknownContextError):
        return 404, str(error)
    if isinstance(error, InputError):
        return 400, str(error)
    _LOG.error("a sequence failed unexpectedly\n%s", shown_traceback(error))
    return 500, "the server failed; its log says why."


def _unwanted(begun: asyncio.Future[Stream]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().cancel()


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
