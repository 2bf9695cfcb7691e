"""Many threads over one session: whatever the others ask, each gets its own answer, and memory
doesn't grow."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from campaigns.operations import OLD_BUNDLE, Outcomes
from crossfuse import InputError, runtime
from crossfuse.runtime.context import Context
from crossfuse.serve.request_engine import Request, RequestEngine

Arrays = dict[str, np.ndarray]
Call = Callable[[random.Random], str]
THREADS = 16
GROWTH = 48 << 20
"""Bytes by which the process may grow after a tenth of the requests."""


class Crowd:
    """A session, and requests whose answers are known from a session of one thread.

    Args:
        session: that all threads ask.
        chance: what decides about sizes.
    """

    def __init__(self, session: runtime.Session, chance: random.Random) -> None:
        self.session = session
        self.engine = RequestEngine(session, cache_bytes=1 << 20)
        self.known: list[tuple[Arrays, Arrays]] = []
        self.contexts: list[Context] = []
        with runtime.load(OLD_BUNDLE, "ort-cpu", runtime.SessionOptions(threads=1)) as alone:
            for seed in range(24):
                inputs = inputs_of(np.random.default_rng(seed), chance)
                self.known.append((inputs, alone.run(inputs)))
                context, _ = parts(inputs)
                self.contexts.append(session.encode(context))
        self.engine.prove_merging(self.known[0][0])
        self.calls: tuple[Call, ...] = (
            self.runs,
            self.encodes,
            self.asks,
            self.selects,
            self.serves,
            self.serves_two,
            self.binds,
            self.errs,
        )

    def runs(self, chance: random.Random) -> str:
        inputs, expected = chance.choice(self.known)
        return told(self.session.run(inputs), expected)

    def encodes(self, chance: random.Random) -> str:
        inputs, expected = chance.choice(self.known)
        context, queries = parts(inputs)
        return told(self.session.query(self.session.encode(context), queries), expected)

    def asks(self, chance: random.Random) -> str:
        number = chance.randrange(len(self.known))
        inputs, expected = self.known[number]
        return told(self.session.query(self.contexts[number], parts(inputs)[1]), expected)

    def selects(self, chance: random.Random) -> str:
        number = chance.randrange(len(self.known))
        inputs, expected = self.known[number]
        context = self.contexts[number]
        chosen = context.select(range(len(context)))
        return told(self.session.query(chosen, parts(inputs)[1]), expected)

    def serves(self, chance: random.Random) -> str:
        inputs, expected = chance.choice(self.known)
        (answer,) = self.engine.answer([Request(inputs)])
        return told(answer, expected) if isinstance(answer, dict) else f"failed: {answer}"

    def serves_two(self, chance: random.Random) -> str:
        inputs, expected = chance.choice(self.known)
        wrong = {**inputs, "a": inputs["a"].astype(np.float64)}
        refusal, answer = self.engine.answer([Request(wrong), Request(inputs)])
        if not isinstance(refusal, InputError) or not isinstance(answer, dict):
            return f"failed: {refusal}, {answer}"
        return told(answer, expected)

    def binds(self, chance: random.Random) -> str:
        inputs, expected = chance.choice(self.known)
        return told(self.session.bind(inputs).run(), expected)

    def errs(self, chance: random.Random) -> str:
        inputs, _ = chance.choice(self.known)
        wrong = (
            {"a": inputs["a"]},
            {**inputs, "more": inputs["a"]},
            {**inputs, "a": inputs["a"][..., :5]},
            {**inputs, "b": inputs["b"].astype(np.float16)},
            {**inputs, "a": inputs["a"][0]},
        )
        try:
            self.session.run(chance.choice(wrong))
        except InputError:
            return "refused"
        return "failed: wrong inputs were taken"


def inputs_of(rng: np.random.Generator, chance: random.Random) -> Arrays:
    batch, length, keys = chance.randint(1, 3), chance.randint(1, 9), chance.randint(1, 9)
    mask = np.ones((batch, keys), np.int64)
    mask[:, keys - keys // 3 :] = 0
    return {
        "a": rng.standard_normal((batch, length, 32)).astype(np.float32),
        "b": rng.standard_normal((batch, keys, 24)).astype(np.float32),
        "b_mask": mask,
    }


def parts(inputs: Arrays) -> tuple[Arrays, Arrays]:
    return {name: inputs[name] for name in ("b", "b_mask")}, {"a": inputs["a"]}


def told(got: Arrays, expected: Arrays) -> str:
    """``answered``, where each output is what the session of one thread gave, to the last bit."""
    same = all(np.array_equal(got[name], array) for name, array in expected.items())
    return "answered" if same else "wrong"


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def requests(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Calls of every kind, right and wrong ones, from 16 threads at once."""
    found: Outcomes = Counter()
    lock = threading.Lock()
    with runtime.load(OLD_BUNDLE, "ort-cpu", runtime.SessionOptions(threads=1)) as session:
        crowd = Crowd(session, chance)

        def asks(seed: int, count: int) -> None:
            mine, own = random.Random(seed), Counter[str]()
            for _ in range(count):
                call = mine.choice(crowd.calls)
                try:
                    outcome = call(mine)
                except Exception as error:  # noqa: BLE001 -- what fails is counted, others go on
                    outcome = f"failed: {call.__name__}: {error!r}"
                own[outcome] += 1
            with lock:
                found.update(own)

        def all_ask(total: int, seed: int) -> None:
            counts = [total // THREADS + (n < total % THREADS) for n in range(THREADS)]
            threads = [
                threading.Thread(target=asks, args=(seed + n, count))
                for n, count in enumerate(counts)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        all_ask(times // 10, 0)
        before = resident()
        all_ask(times - times // 10, THREADS)
        grown = resident() - before
    assert set(found) <= {"answered", "refused"}, found
    assert grown < GROWTH, f"grown by {grown >> 20} MB"
    return found


CAMPAIGNS = (requests,)
