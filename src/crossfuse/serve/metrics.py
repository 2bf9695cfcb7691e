"""What a server counts: time by stage, batch sizes, cache hits.

Where it is shown is up to each server.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import Protocol

__all__ = ["BATCHES", "SECONDS", "Meter", "Totals"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of latency buckets."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of batch size buckets."""


class Meter(Protocol):
    """Is told what an engine does; called from several threads."""

    def stage(self, name: str, seconds: float) -> None:
        """A stage (``context``, ``query`` or ``model``) was executed."""

    def batch(self, rows: int) -> None:
        """So many queries were answered by one call."""

    def cache(self, hit: bool, nbytes: int, kept: int) -> None:
        """A context was looked up; what the cache holds since."""


class Totals:
    """Counts in memory."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.rows: Counter[int] = Counter()
        self.hits = 0
        self.misses = 0
        self.nbytes = 0
        self.kept = 0
        self._lock = threading.Lock()

    def stage(self, name: str, seconds: float) -> None:
        """Count a call and its time."""
        with self._lock:
            self.seconds[name] += seconds
            self.calls[name] += 1

    def batch(self, rows: int) -> None:
        """Count a batch by its size."""
        with self._lock:
            self.rows[rows] += 1

    def cache(self, hit: bool, nbytes: int, kept: int) -> None:
        """Count a hit or a miss."""
        with self._lock:
            self.hits += hit
            self.misses += not hit
            self.nbytes, self.kept = nbytes, kept
