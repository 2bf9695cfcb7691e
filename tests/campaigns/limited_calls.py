"""A program that loads a bundle and asks it within a limit of memory, so many bytes more than it
has: ``BUNDLE KIND BYTES``; without a limit: ``BUNDLE``.

Each answer is right, or the call is refused in one paragraph; when the limit is lifted, the same
session answers, or the bundle is loaded. Exits with 2 where anything was refused.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crossfuse import CrossfuseError, runtime

Arrays = dict[str, np.ndarray]
SIZES = (1, 4, 16, 64)


def inputs_of(size: int) -> Arrays:
    rng = np.random.default_rng(size)
    return {
        "a": rng.standard_normal((size, 7, 32)).astype(np.float32),
        "b": rng.standard_normal((size, 11, 24)).astype(np.float32),
        "b_mask": np.ones((size, 11), np.int64),
    }


class Kind(NamedTuple):
    """A limit of memory, and how Linux calls in a process's status what it counts."""

    name: str
    limit: int
    now: str
    most: str


KINDS = (
    Kind("address space", resource.RLIMIT_AS, "VmSize", "VmPeak"),
    Kind("data", resource.RLIMIT_DATA, "VmData", "VmData"),
)


def status_of(process: str) -> str:
    """What Linux tells of a process, nothing of one that has ended."""
    try:
        return (Path("/proc") / process / "status").read_text()
    except OSError:
        return ""


def used(status: str, field: str) -> int:
    """Bytes in a field of that, or 0."""
    lines = [line.split() for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(lines[0][1]) * 1024 if lines else 0


def limit_to(kind: Kind, size: int) -> None:
    """Limit this process, for ever."""
    resource.setrlimit(kind.limit, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def limited(kind: Kind, more: int) -> Iterator[None]:
    """This process may take so many bytes more than it has."""
    before = resource.getrlimit(kind.limit)
    resource.setrlimit(kind.limit, (used(status_of("self"), kind.now) + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind.limit, before)


def asked(session: runtime.Session, number: int, known: list[tuple[Arrays, Arrays]]) -> Arrays:
    """One of the calls that a session has."""
    inputs, _ = known[number // 2]
    if number % 2:
        context = session.encode({name: inputs[name] for name in ("b", "b_mask")})
        return dict(session.query(context, {"a": inputs["a"]}))
    return dict(session.run(inputs))


def main() -> int:
    """Load, ask within the limit, and ask again without."""
    bundle, *about = sys.argv[1:]
    within: AbstractContextManager[None] = nullcontext()
    if about:
        within = limited(next(one for one in KINDS if one.name == about[0]), int(about[1]))
    options = runtime.SessionOptions(threads=1)
    with runtime.load(bundle, "ort-cpu", options) as session:
        known = [(one, dict(session.run(one))) for one in map(inputs_of, SIZES)]
    calls = range(2 * len(SIZES))
    refusals: list[str] = []
    answers: list[tuple[int, Arrays]] = []
    with ExitStack() as held:
        opened: list[runtime.Session] = []
        with within:
            try:
                opened.append(held.enter_context(runtime.load(bundle, "ort-cpu", options)))
            except CrossfuseError as error:
                refusals.append(str(error))
            for number in calls:
                if opened:
                    try:
                        answers.append((number, asked(opened[0], number, known)))
                    except CrossfuseError as error:
                        refusals.append(str(error))
        if not opened:
            opened.append(held.enter_context(runtime.load(bundle, "ort-cpu", options)))
        answers += [(number, asked(opened[0], number, known)) for number in calls]
    for number, answer in answers:
        require_right(answer, known[number // 2][1])
    for refusal in refusals:
        assert len(refusal.splitlines()) == 1, refusal
    if refusals:
        unforeseen = [one for one in refusals if "did not foresee" in one]
        os.write(2, f"error: {(unforeseen or refusals)[0]}\n".encode())
    return 2 if refusals else 0


def require_right(got: Arrays, expected: Arrays) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    sys.exit(main())
