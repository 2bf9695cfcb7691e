"""Many callers at once: a closed loop of callers that ask again when they are answered, and an open
loop of arrivals at a rate.

In the open loop a request's latency counts from when it was *due*, not from when a caller got round
to it: a stall is felt by all that arrive during it (no coordinated omission).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form, OneOf

__all__ = ["LoadResult", "closed_loop", "open_loop", "together"]

Call = Callable[[], object]


@dataclass(frozen=True)
class LoadResult(JsonData):
    """What came of one load.

    Attributes:
        kind: ``closed`` or ``open``.
        level: callers, or requests per second that arrive.
        latencies: in nanoseconds, in order of completion.
        throughput: requests per second that were answered.
    """

    __json__: ClassVar[Form] = Form(
        keys=("kind", "level", "throughput", "p50", "p90", "p95", "p99", "latencies"),
        names={"latencies": "latencies_ns"},
    )

    kind: Annotated[str, OneOf(("closed", "open"))]
    level: float
    latencies: tuple[int, ...]
    throughput: float

    def percentile(self, q: float) -> float:
        """In seconds; ``q`` from 0 to 1."""
        return float(np.quantile(self.latencies, q)) * 1e-9

    @property
    def p50(self) -> float:
        """The median, in seconds."""
        return self.percentile(0.5)

    @property
    def p90(self) -> float:
        """In seconds."""
        return self.percentile(0.9)

    @property
    def p95(self) -> float:
        """In seconds."""
        return self.percentile(0.95)

    @property
    def p99(self) -> float:
        """In seconds."""
        return self.percentile(0.99)


def closed_loop(
    call: Call, callers: int, seconds: float, *, clock: Callable[[], int] = time.perf_counter_ns
) -> LoadResult:
    """``callers`` threads ask as soon as they are answered, for so long."""
    taken: list[int] = []
    started = clock()
    end = started + int(seconds * 1e9)

    def work(_: int) -> None:
        before = clock()
        while before < end:
            call()
            now = clock()
            taken.append(now - before)
            before = now

    together(work, callers)
    return LoadResult("closed", callers, tuple(taken), len(taken) / ((clock() - started) * 1e-9))


def open_loop(
    call: Call,
    rate: float,
    seconds: float,
    servers: int = 1,
    *,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> LoadResult:
    """Requests arrive at random, ``rate`` a second on average, and wait for one of ``servers``
    threads."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1e9 / rate, size=max(1, int(rate * seconds)))
    started = clock()
    due = started + np.cumsum(gaps).astype(np.int64)
    taken: list[int] = []
    lock = threading.Lock()
    arrivals = iter(due.tolist())

    def work(_: int) -> None:
        while True:
            with lock:
                arrival = next(arrivals, None)
            if arrival is None:
                return
            wait = arrival - clock()
            if wait > 0:
                sleep(wait * 1e-9)
            call()
            taken.append(clock() - arrival)

    together(work, servers)
    return LoadResult("open", rate, tuple(taken), len(taken) / ((clock() - started) * 1e-9))


def together(work: Callable[[int], None], count: int) -> None:
    """Run in threads; in this one where it is alone. The first error of any is raised."""
    if count == 1:
        work(0)
        return
    errors: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:  # noqa: BLE001 -- raised again below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
