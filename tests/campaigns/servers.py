"""Servers under attack: whatever some clients send, the others are answered, rightly and in time.

``PYTHONPATH=src:tests python tests/campaigns/servers.py 10000`` sends so many fuzzed requests, and
fewer of each other kind, to the server without Ray; with ``ray`` behind the number to a real one.
Honest clients ask all the time; that one fails, gets a wrong answer or waits for a second raises.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asking import Asking
from campaigns.fuzzed_requests import Arrays, Fuzzer, body_of, framed
from campaigns.operations import OLD_BUNDLE, Outcomes
from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.core.processes import for_child
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.serve.merging import agree
from crossfuse.serve.open_inference import BINARY_HEADER

LONGEST = 1.0
"""Seconds that an honest request may take."""
INFER = "/v2/models/m/infer"
SECRETS = ("Traceback", 'File "', "site-packages", "/src/crossfuse", "RayTaskError")
HONEST, STRANGER = "127.0.0.1", "127.0.0.2"
WAITS = "waits"


@dataclass
class Served:
    """A server, and what an honest request to it is answered."""

    port: int
    arrays: Arrays
    expected: Arrays
    process: subprocess.Popen[Any]


@contextmanager
def without_ray() -> Iterator[Served]:
    """The server's front and ingress alone."""
    script = Path(__file__).parent / "asgi_server.py"
    with _served([sys.executable, str(script), str(OLD_BUNDLE)]) as served:
        yield served


@contextmanager
def with_ray() -> Iterator[Served]:
    """`crossfuse serve`."""
    options = ["--target", "ort-cpu", "--name", "m", "--metrics-port", str(free_port()), "--port"]
    command = [sys.executable, "-m", "crossfuse", "serve", str(OLD_BUNDLE), "--json", *options]
    with _served(command) as served:
        yield served


SERVERS = {"asgi": without_ray, "ray": with_ray}


@contextmanager
def _served(command: list[str]) -> Iterator[Served]:
    arrays = smallest_inputs(open_bundle(OLD_BUNDLE))
    assert arrays is not None
    with runtime.load(OLD_BUNDLE, "ort-cpu") as session:
        expected = session.run(arrays)
    port = free_port()
    process = subprocess.Popen(
        [*command, str(port)], stdout=subprocess.DEVNULL, env=for_child(), start_new_session=True
    )
    try:
        served = Served(port, arrays, expected, process)
        _wait_until_ready(served)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def _wait_until_ready(served: Served) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and served.process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            if exchange(served.port, framed(*body_of(served.arrays, True)), 10).status == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HONEST, 0))
        return int(trial.getsockname()[1])


@dataclass
class Reply:
    status: int
    kind: str
    body: bytes


def connected(port: int, seconds: float, source: str = HONEST) -> socket.socket:
    return socket.create_connection((HONEST, port), seconds, (source, 0))


def exchange(port: int, data: bytes, seconds: float, source: str = HONEST) -> Reply:
    """What a server says to these bytes; its connection is this request's."""
    with connected(port, seconds, source) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return reply_on(connection, data[:5] == b"HEAD ")


def reply_on(connection: socket.socket, is_head: bool = False) -> Reply:
    response = http.client.HTTPResponse(connection, method="HEAD" if is_head else "POST")
    response.begin()
    return Reply(response.status, response.getheader("Content-Type") or "", response.read())


@dataclass
class Honest(Asking):
    """Clients who ask all the time, each over one connection."""

    served: Served
    took: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    callers = 2

    def ask(self, number: int) -> None:
        served, turn = self.served, number
        connection = http.client.HTTPConnection(HONEST, served.port, timeout=30)
        while self.goes_on:
            turn += 1
            body, length = body_of(served.arrays, turn % 2 > 0)
            headers = {} if length is None else {BINARY_HEADER: str(length)}
            start = time.monotonic()
            try:
                connection.request("POST", INFER, body, headers)
                response = connection.getresponse()
                answer = Reply(response.status, "", response.read())
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(repr(error))
                connection = http.client.HTTPConnection(HONEST, served.port, timeout=30)
                continue
            self.took.append(time.monotonic() - start)
            if answer.status != 200 or not agree(read_outputs(answer), served.expected):
                self.faults.append(f"{answer.status}: {answer.body[:200]!r}")
            time.sleep(0.01)

    def check(self) -> str:
        """Raise if one was failed or delayed; else how long they took."""
        assert not self.faults, self.faults[:5]
        assert self.took
        late = [round(one, 2) for one in self.took if one > LONGEST]
        assert not late, f"{len(late)} of {len(self.took)} took more than {LONGEST} s: {late[:20]}"
        return f"{len(self.took)} honest, at most {max(self.took):.2f} s"


def read_outputs(answer: Reply) -> Arrays:
    top = json.loads(answer.body)
    return {
        one["name"]: np.asarray(one["data"], np.float32).reshape(one["shape"])
        for one in top["outputs"]
    }


def fault_in(kind: str, reply: Reply) -> str | None:
    """What is wrong with an answer to a request that may be anything."""
    text = reply.body.decode(errors="replace")
    if reply.status >= 500 and reply.status not in (501, 505):
        return f"{kind}: {reply.status} {text[:200]}"
    if any(secret in text for secret in SECRETS):
        return f"{kind}: tells of itself: {text[:300]}"
    if text and reply.status >= 400 and reply.kind.startswith("application/json"):
        error = json.loads(text)["error"]
        if len(error.splitlines()) > 1 or len(text) > 5000:
            return f"{kind}: not one paragraph: {text[:300]}"
    return None


def fuzzed(times: int, served: Served, chance: random.Random) -> Outcomes:
    """Requests that may be anything."""
    fuzzer = Fuzzer(served.arrays, chance)
    made = [fuzzer.make() for _ in range(times)]

    def ask(one: tuple[str, bytes]) -> tuple[str, str | None]:
        kind, data = one
        try:
            reply = exchange(served.port, data, 2, STRANGER)
        except TimeoutError:
            return WAITS, None
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"closed ({type(error).__name__})", None
        fault = fault_in(kind, reply)
        return str(reply.status), None if fault is None else f"{fault} to {data[:700]!r}"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, made))
    faults = [fault for _, fault in results if fault is not None]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:8]])
    return Counter(outcome for outcome, _ in results)


@contextmanager
def held(times: int, served: Served, begun: bytes) -> Iterator[list[socket.socket]]:
    """So many connections on which something has begun."""
    connections: list[socket.socket] = []
    try:
        for _ in range(times):
            connection = connected(served.port, 30, STRANGER)
            connection.sendall(begun)
            connections.append(connection)
        yield connections
    finally:
        for connection in connections:
            connection.close()


def idle_heads(times: int, served: Served, chance: random.Random) -> Outcomes:
    """Connections whose heads don't end."""
    with held(times, served, b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nX-More: "):
        time.sleep(5)
    return Counter({"held": times})


def idle_bodies(times: int, served: Served, chance: random.Random) -> Outcomes:
    """Heads whose bodies don't come, more than any queue has places."""
    body, length = body_of(served.arrays, True)
    with held(times, served, framed(body, length)[: -len(body)]):
        time.sleep(5)
    return Counter({"held": times})


def slow_bodies(times: int, served: Served, chance: random.Random) -> Outcomes:
    """Bodies that come byte by byte; half of them end, and are answered."""
    body, length = body_of(served.arrays, True)
    whole = framed(body, length)
    cut = len(whole) - 40
    found: Outcomes = Counter()
    with held(times, served, whole[:cut]) as connections:
        for at in range(cut, len(whole)):
            time.sleep(0.1)
            for connection in connections[: times // 2]:
                connection.sendall(whole[at : at + 1])
        for connection in connections[: times // 2]:
            found[str(reply_on(connection).status)] += 1
        found["held"] = times - times // 2
    assert found["200"] == times // 2, found
    return found


def long_json(times: int, served: Served, chance: random.Random) -> Outcomes:
    """As much JSON as is allowed, of numbers that are parsed for nothing."""
    name = next(iter(served.arrays))
    row = ", ".join(f"{chance.random():.17g}" for _ in range(1000))
    count = (8 << 20) // (len(row) + 2) - 1
    tensor = {"name": name, "datatype": "FP32", "shape": [count * 1000], "data": ["numbers"]}
    text = json.dumps({"inputs": [tensor]}).replace('"numbers"', ", ".join([row] * count))
    return crowd(times, served, framed(text.encode()), 6, {"400"})


def large_bodies(times: int, served: Served, chance: random.Random) -> Outcomes:
    """Bodies of almost the largest size."""
    inputs = [{"name": "x", "datatype": "UINT8", "shape": [60 << 20]}]
    inputs[0]["parameters"] = {"binary_data_size": 60 << 20}
    text = json.dumps({"inputs": inputs}).encode()
    data = framed(text + bytes(60 << 20), len(text))
    return crowd(times, served, data, 4, {"400", "503"})


def floods(times: int, served: Served, chance: random.Random) -> Outcomes:
    """Honest requests of one address, several hundred at once."""
    return crowd(times, served, framed(*body_of(served.arrays, True)), 400, {"200", "503"})


def crowd(times: int, served: Served, data: bytes, at_once: int, allowed: set[str]) -> Outcomes:
    """The same request so many times, so many at once."""

    def ask(_: int) -> str:
        try:
            reply = exchange(served.port, data, 60, STRANGER)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            return "closed"
        return str(reply.status)

    with ThreadPoolExecutor(at_once) as pool:
        found = Counter(pool.map(ask, range(times)))
    assert set(found) <= allowed | {"closed"}, found
    return found


CAMPAIGNS: dict[str, Callable[[int, Served, random.Random], Outcomes]] = {
    one.__name__: one
    for one in (fuzzed, idle_heads, idle_bodies, slow_bodies, long_json, large_bodies, floods)
}
SHARES = {
    "fuzzed": 1.0, "idle_heads": 0.04, "idle_bodies": 0.07, "slow_bodies": 0.02, "long_json": 0.005,
    "large_bodies": 0.003, "floods": 0.4,
}  # fmt: skip
"""How often each kind of attack is tried, as a part of the times that were asked for."""


def attacked(name: str, times: int, served: Served, seed: int) -> tuple[Outcomes, str]:
    """One campaign beside honest clients: what came of it, and how those fared."""
    with Honest(served) as honest:
        time.sleep(0.5)
        found = CAMPAIGNS[name](times, served, random.Random(seed))
        time.sleep(0.5)
    return found, honest.check()


def main() -> None:
    """Print a line for each campaign."""
    times = int(sys.argv[1])
    with SERVERS[sys.argv[2] if len(sys.argv) > 2 else "asgi"]() as served:
        for name in sys.argv[3:] or CAMPAIGNS:
            start = time.perf_counter()
            found, honest = attacked(name, max(1, int(times * SHARES[name])), served, 0)
            seconds = time.perf_counter() - start
            sys.stdout.write(f"{name}: {dict(found)} in {seconds:.0f} s; {honest}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
