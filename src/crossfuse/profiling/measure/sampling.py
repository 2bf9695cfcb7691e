"""Latency samples of several callables, interleaved round by round, so that drift of the machine
hits all alike.

A window begins when the threads of the library before it have stopped spinning. Every sample is
kept. A round whose median is far from the other rounds' is unstable: more rounds are run, and it
stays flagged; nothing is dropped.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Plan", "Samples", "sample", "warm_up"]

Call = Callable[[], object]
Clock = Callable[[], int]

_STEADY = 0.05
_NAP = 0.02
_SPINNING = 0.5
_LONGEST_SETTLING = 0.5
_FAR = 0.10
_DEVIATIONS = 5.0
_MAD_OF_SIGMA = 1.4826


@dataclass(frozen=True)
class Plan:
    """How much is sampled.

    Args:
        rounds: at least; unstable ones are made up for by up to half as many again.
        seconds: of each callable in each round.
        calls: of each callable in each round, at least.
        warm_up_seconds: the longest that a callable is warmed up.
    """

    rounds: int = 12
    seconds: float = 0.3
    calls: int = 3
    warm_up_seconds: float = 5.0


@dataclass(frozen=True)
class Samples:
    """Nanoseconds by round; ``unstable`` numbers the rounds that stick out."""

    rounds: tuple[tuple[int, ...], ...]
    unstable: tuple[int, ...] = ()


def sample(
    calls: Mapping[str, Call],
    plan: Plan | None = None,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Samples]:
    """Warm up, then sample every callable in every round, each round beginning with another one."""
    plan = plan or Plan()
    names = list(calls)
    for name in names:
        progress(f"warming up {name}")
        warm_up(calls[name], plan, clock)
    taken: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    rounds, most = plan.rounds, plan.rounds + plan.rounds // 2
    done = 0
    with _frozen_heap():
        while done < rounds:
            progress(f"round {done + 1} of {rounds}")
            for i in range(len(names)):
                name = names[(done + i) % len(names)]
                with _no_collection():
                    taken[name].append(_window(calls[name], plan, clock))
            done += 1
            if done == rounds:
                rounds = min(
                    most,
                    plan.rounds
                    + max((len(unstable_rounds(taken[name])) for name in names), default=0),
                )
    return {name: Samples(tuple(rounds), unstable_rounds(rounds)) for name, rounds in taken.items()}


def warm_up(call: Call, plan: Plan, clock: Clock = time.perf_counter_ns) -> int:
    """Call until two windows in a row have medians within 5%, or time is up.

    Returns:
        how many calls it took.
    """
    deadline = clock() + int(plan.warm_up_seconds * 1e9)
    before, count = 0.0, 0
    while True:
        window = _window(call, plan, clock)
        count += len(window)
        median = statistics.median(window)
        if before and abs(median - before) <= _STEADY * before:
            return count
        if clock() >= deadline:
            return count
        before = median


def unstable_rounds(rounds: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Rounds whose medians are far from the middle: by 10%, and by five times the usual
    deviation."""
    if len(rounds) < 3:
        return ()
    medians = [statistics.median(r) for r in rounds]
    middle = statistics.median(medians)
    usual = _MAD_OF_SIGMA * statistics.median(abs(m - middle) for m in medians)
    limit = max(_FAR * middle, _DEVIATIONS * usual)
    return tuple(i for i, m in enumerate(medians) if abs(m - middle) > limit)


def _window(call: Call, plan: Plan, clock: Clock) -> tuple[int, ...]:
    """Samples of so many seconds, after one call that isn't counted: another callable ran before,
    in the caches."""
    _settle()
    call()
    taken: list[int] = []
    end = clock() + int(plan.seconds * 1e9)
    before = clock()
    while before < end or len(taken) < plan.calls:
        call()
        now = clock()
        taken.append(now - before)
        before = now
    return tuple(taken)


def _settle() -> None:
    """Sleep until the process's threads do so too, for half a second at most.

    Threads of a pool spin for a while after a call, waiting for the next: 50 ms in ONNX Runtime,
    100 ms in OpenBLAS. Another library's calls would share the cores with them. A nap takes as long
    as several ticks, by which the system counts time.
    """
    end = time.perf_counter() + _LONGEST_SETTLING
    while time.perf_counter() < end:
        before, used = time.perf_counter(), time.process_time()
        time.sleep(_NAP)
        if time.process_time() - used < _SPINNING * (time.perf_counter() - before):
            return


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """What is there already is not searched for garbage: with PyTorch loaded that takes longer than
    a window."""
    gc.collect()
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector runs between windows, not in them."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
