"""Servers that are told to stop while clients ask, on a machine that is busy or not: each client is
answered, refused or finds nobody, at once; and no process is left."""

from __future__ import annotations

import http.client
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from asking import Asking
from campaigns.damaged_graphs import Chance
from campaigns.fuzzed_requests import body_of
from campaigns.operations import Outcomes
from campaigns.servers import HONEST, INFER, Served, with_ray
from crossfuse.core.processes import descendants
from crossfuse.serve.open_inference import BINARY_HEADER

CALLERS = 12
LOOPS = 8
PATIENCE = 90
LONGEST = 20.0
"""Seconds until a client of a stopping server has its answer, also where its machine is busy."""
SOON = 5.0
"""Seconds after the command's end until all of its processes are gone."""
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    pass
"""


@dataclass
class Callers(Asking):
    """Clients who ask without pause, each time over a new connection.

    Attributes:
        served: whom they ask.
        calls: when each began, how long it took, and what came of it.
    """

    served: Served
    calls: list[tuple[float, float, str]] = field(default_factory=list)
    callers = CALLERS

    def ask(self, number: int) -> None:
        body, length = body_of(self.served.arrays, True)
        while self.goes_on:
            start = time.monotonic()
            connection = http.client.HTTPConnection(HONEST, self.served.port, timeout=PATIENCE)
            try:
                connection.request("POST", INFER, body, {BINARY_HEADER: str(length)})
                response = connection.getresponse()
                response.read()
                said = str(response.status)
            except (OSError, http.client.HTTPException) as error:
                said = type(error).__name__
            finally:
                connection.close()
            self.calls.append((start, time.monotonic() - start, said))
            if said != "200":
                time.sleep(0.02)


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes that only compute."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def stopped(loops: int) -> tuple[float, Counter[str]]:
    """Start a server, let clients ask, and stop it: the seconds from SIGTERM to the command's end,
    and what those got who asked after SIGTERM."""
    with with_ray() as served, busy(loops):
        with Callers(served) as callers:
            time.sleep(3)
            ours = {one: began for one, began in descendants().items() if one != os.getpid()}
            start = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(120) == 0
            took = time.monotonic() - start
            _require_gone({one for one in ours if _named("ray", one)})
            time.sleep(0.2)
        after = [call for call in callers.calls if call[0] + call[1] > start]
    longest = max(seconds for _, seconds, _ in after)
    assert longest < LONGEST, f"a client waited for {longest:.1f} s: {sorted(after)[-5:]}"
    said = Counter(said for *_, said in after)
    assert set(said) <= {
        "200", "503", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected",
        "BrokenPipeError", "IncompleteRead",
    }, said  # fmt: skip
    return took, said


def _named(word: str, process: int) -> bool:
    try:
        return word.encode() in (Path("/proc") / str(process) / "cmdline").read_bytes()
    except OSError:
        return False


def _require_gone(processes: set[int]) -> None:
    end = time.monotonic() + SOON
    left = processes
    while left and time.monotonic() < end:
        left = {one for one in processes if _named("ray", one)}
        time.sleep(0.02)
    assert not left, f"{len(left)} processes outlived the command"


def stops(times: int, folder: Path, chance: Chance, loops: int = 0) -> Outcomes:
    """Stops on a machine that has nothing else to do; quiet machines stop in under 3 s."""
    found: Outcomes = Counter()
    seconds = []
    for _ in range(times):
        took, _ = stopped(loops)
        seconds.append(took)
        found["under 3 s" if took < 3 else "under 10 s" if took < 10 else "later"] += 1
    sys.stdout.write(f"SIGTERM to end: {statistics.median(seconds):.1f} s, {max(seconds):.1f} s\n")
    return found


def busy_stops(times: int, folder: Path, chance: Chance) -> Outcomes:
    """Stops beside eight processes that only compute."""
    return stops(times, folder, chance, LOOPS)


CAMPAIGNS = (stops, busy_stops)
