"""The Ray Serve application through the command line, asked with Triton's client: answers,
refusals, deaths, redeploys."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coverage.cases import CASES
from crossfuse import InputError, runtime
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.serve.rayserve.options import ServeOptions
from end_to_end.test_serve_triton import requests_for

pytest.importorskip("ray", reason="ray is not installed")
serving = pytest.importorskip("serving", reason="tritonclient is not installed")

from crossfuse.serve.rayserve.ingress import home_of  # noqa: E402

OLD = Path(__file__).parents[1] / "data" / "bundle-0.1.0"


@contextmanager
def server(
    bundle: Path, *options: str, name: str = "m"
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """``crossfuse serve`` on a free port."""
    port, metrics = serving.free_port(), serving.free_port()
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "serve",
        str(bundle),
        "--port",
        str(port),
        "--metrics-port",
        str(metrics),
    ]
    command += ["--name", name, "--json", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        serving.wait_until_ready(port, name, 240)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


Made = Callable[[str, Path], Bundle]


@pytest.fixture
def made(shared_bundle: Callable[..., Bundle]) -> Made:
    """A bundle in a folder, to be served."""

    def get(name: str, folder: Path) -> Bundle:
        case = {} if name in CASES else {"size": "tiny"}
        bundle = shared_bundle(f"coverage/{name}" if name in CASES else name, **case)
        return open_bundle(shutil.copytree(bundle.path, folder))

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qformer", "blip_retrieval"])
def test_application_answers_as_the_session_does(made: Made, tmp_path: Path, name: str) -> None:
    bundle = made(name, tmp_path / "bundle")
    with (
        runtime.load(bundle.path) as session,
        server(bundle.path, "--replicas", "2", "--num-cpus", "0.5") as (port, process),
    ):
        requests = requests_for(session)
        serving.check_metadata(port, "m", session)
        serving.check_answers(port, "m", session, requests)
        context = tuple(s.name for s in session.stages["context"].inputs)
        serving.check_context_ids(port, "m", session, requests[0], context)
        serving.check_refusals(port, "m", session, requests[0], context[0], "input_ids")
        assert process.stdout is not None
        started = read_json(process.stdout)
        assert started["url"] == f"http://127.0.0.1:{port}/v2/models/m"

        def all_are_told(counted: Counter[str]) -> bool:
            hits, misses = (counted[f"crossfuse_context_cache_{n}"] for n in ("hits", "misses"))
            return counted["crossfuse_requests"] > len(requests) and hits > misses > 0

        counted = metrics_of(started["metrics"], all_are_told)
        assert all_are_told(counted), counted
        # What was taken is answered, although the server is told to stop.
        expected = [session.run(**request) for request in requests]
        with serving.Load(port, "m", requests, expected, callers=2) as load:
            wait_for(lambda: load.answers > 4)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: bool(load.failures), 60)
        assert load.wrong == 0
        assert all(is_refused(one) for one in load.failures), load.failures
        assert process.wait(120) == 0


@pytest.mark.slow
def test_a_killed_replica_costs_no_wrong_answer(made: Made, tmp_path: Path) -> None:
    """At most the requests that it had in flight fail; none does where another replica can take
    them over."""
    bundle = made("qformer", tmp_path / "bundle")
    with (
        runtime.load(bundle.path) as session,
        server(bundle.path, "--replicas", "2", "--num-cpus", "0.5") as (port, _),
    ):
        requests = requests_for(session)
        expected = [session.run(**arrays) for arrays in requests]
        with serving.Load(port, "m", requests, expected, callers=4) as load:
            wait_for(lambda: load.answers > 50)
            victims = replicas()
            os.kill(victims[0], signal.SIGKILL)
            at = load.answers
            wait_for(lambda: load.answers > at + 200)
            wait_for(lambda: len(replicas()) == 2 and replicas() != victims)
            at = load.answers
            wait_for(lambda: load.answers > at + 50)
        print(f"{load.answers} answers, {load.wrong} wrong, {len(load.failures)} failed")
        assert load.wrong == 0
        # Four callers in a closed loop: no more than four requests can have been in flight on the
        # killed one.
        assert len(load.failures) <= 4, load.failures
        assert all("503" in failure or "died" in failure for failure in load.failures), (
            load.failures
        )


@pytest.mark.slow
def test_a_redeploy_under_load_fails_no_request(made: Made, tmp_path: Path) -> None:
    """By the emitted config, as ``serve run`` reads it, then by the command line on the running
    cluster."""
    from crossfuse.serve.cluster import local_ray

    bundle = made("qformer", tmp_path / "bundle")
    port = serving.free_port()
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "serve",
        str(bundle.path),
        "--replicas",
        "2",
        "--num-cpus",
        "0.5",
    ]
    command += ["--name", "m", "--port", str(port)]
    subprocess.run([*command, "--emit-config", str(tmp_path / "serve.yaml")], check=True)
    with runtime.load(bundle.path) as session, local_ray(cpus=2):
        import ray

        address = ray.get_runtime_context().gcs_address
        environment = os.environ | {"RAY_ADDRESS": address}
        script = Path(sys.executable).parent / "serve"
        subprocess.run(
            [script, "run", "--non-blocking", tmp_path / "serve.yaml"], check=True, env=environment
        )
        serving.wait_until_ready(port, "m")
        requests = requests_for(session)
        expected = [session.run(**arrays) for arrays in requests]
        with serving.Load(port, "m", requests, expected) as load:
            wait_for(lambda: load.answers > 50)
            before = set(replicas())
            subprocess.run([*command, "--max-rows", "32", "--address", address], check=True)
            at = load.answers
            wait_for(lambda: load.answers > at + 50)
            assert not before & set(replicas())
        print(f"{load.answers} answers, {load.wrong} wrong, {len(load.failures)} failed")
        assert load.wrong == 0
        assert not load.failures


@pytest.mark.slow
def test_requests_go_where_their_context_is(made: Made, tmp_path: Path) -> None:
    """50 contexts that fit into the caches, over 2 replicas: at least 90% of the repeated requests
    hit."""
    bundle = made("qformer", tmp_path / "bundle")
    with (
        runtime.load(bundle.path) as session,
        server(bundle.path, "--replicas", "2", "--num-cpus", "0.5") as (port, process),
    ):
        assert process.stdout is not None
        url = read_json(process.stdout)["metrics"]
        rng = np.random.default_rng(0)
        base = requests_for(session)[0]
        contexts = [
            rng.standard_normal(base["image_features"].shape).astype(np.float32) for _ in range(50)
        ]
        client = serving.client_of(port)
        serving.infer(client, "m", base)
        before = metrics_of(url)
        rounds = 6
        for i in rng.permutation(50 * rounds):
            serving.infer(client, "m", base | {"image_features": contexts[i % 50]})
        after = metrics_of(
            url, lambda c: c["crossfuse_requests"] - before["crossfuse_requests"] >= 50 * rounds
        )
        hits = after["crossfuse_context_cache_hits"] - before["crossfuse_context_cache_hits"]
        print(f"{hits:g} of {50 * (rounds - 1)} repeated requests hit")
        assert hits >= 0.9 * 50 * (rounds - 1)


@pytest.mark.slow
def test_a_full_queue_says_so(made: Made, tmp_path: Path) -> None:
    bundle = made("qformer", tmp_path / "bundle")
    limits = ["--max-queue", "2", "--batch-wait-ms", "500", "--batch-size", "64"]
    with runtime.load(bundle.path) as session, server(bundle.path, *limits) as (port, _):
        request = requests_for(session)[0]
        with serving.Load(port, "m", [request], [session.run(**request)], callers=8) as load:
            wait_for(lambda: load.answers > 4 and len(load.failures) > 4)
        assert load.wrong == 0
        assert all("queue is full" in failure for failure in load.failures)


@pytest.mark.slow
def test_a_server_is_its_own_and_stops_without_a_wrong_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes listen on the loopback interface and want a token; its metrics are there when
    it is; told to stop, it says 503, never 404, until nobody listens, and leaves nothing."""
    bundle = shutil.copytree(OLD, tmp_path / "bundle")
    monkeypatch.setenv("CROSSFUSE_TEST_MARK", str(tmp_path))
    inputs = smallest_inputs(open_bundle(OLD))
    assert inputs is not None
    with runtime.load(bundle, "ort-cpu") as session:
        expected = session.run(inputs)
    with server(bundle, "--target", "ort-cpu") as (port, process):
        assert process.stdout is not None
        url = read_json(process.stdout)["metrics"]
        with urllib.request.urlopen(url) as page:
            assert b"crossfuse_open_requests" in page.read()
        environments = environments_with(str(tmp_path))
        ours = list(environments)
        assert len(ours) > 5
        found = {address for pid in ours for address in listening(pid)}
        assert found
        assert found <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        # The command makes the token when it has begun. A process that names itself writes its name
        # over its environment, so what was read with the mark counts.
        environments.pop(process.pid)
        assert environments
        assert all("RAY_AUTH_TOKEN" in text for text in environments.values())
        said: list[int] = []
        threads = [
            threading.Thread(target=asks_until_nobody_listens, args=(port, said)) for _ in range(2)
        ]
        with serving.Load(port, "m", [inputs], [expected], callers=2) as load:
            wait_for(lambda: load.answers > 20)
            for thread in threads:
                thread.start()
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
        assert process.wait(60) == 0
        took = time.monotonic() - start
        print(f"stopped in {took:.1f} s; {Counter(said)}; {len(load.failures)} refused")
        assert load.wrong == 0
        assert set(said) <= {200, 503}
        assert 503 in said
        assert all(is_refused(one) for one in load.failures), load.failures
        assert process.stderr is not None
        assert process.stderr.read() == ""
    wait_for(lambda: not marked(str(tmp_path)), 30)


GONE = ("ConnectionRefusedError", "ConnectionResetError")
"""What clients see when nobody listens any more."""


def is_refused(failure: str) -> bool:
    """A server that stops said so (its end may cut even that short), or listened no more."""
    return failure.startswith(GONE) or "[503]" in failure


def asks_until_nobody_listens(port: int, said: list[int]) -> None:
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/v2/health/ready")
            said.append(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def environments_with(mark: str) -> dict[int, str]:
    """Environments that hold a mark, of processes other than this one."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = {pid: environment_of(pid) for pid in pids if pid != os.getpid()}
    return {pid: text for pid, text in found.items() if mark in text}


def marked(mark: str) -> list[int]:
    """Processes, other than this one, whose environment holds a mark."""
    return list(environments_with(mark))


def listening(pid: int) -> set[str]:
    """Addresses on which a process listens."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(fd.readlink().name)
        except OSError:
            continue
    found = set()
    for name, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                data = bytes.fromhex(words[1].partition(":")[0])
                turned = b"".join(data[i : i + 4][::-1] for i in range(0, size, 4))
                family = socket.AF_INET if size == 4 else socket.AF_INET6
                found.add(socket.inet_ntop(family, turned))
    return found


def test_config_file(made: Made, tmp_path: Path) -> None:
    """The emitted file is one that Serve reads, and builds the application that was asked for."""
    yaml = pytest.importorskip("yaml")
    from ray.serve.schema import ServeDeploySchema

    bundle = made("qformer", tmp_path / "bundle")
    file = tmp_path / "serve.yaml"
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "serve",
        str(bundle.path),
        "--emit-config",
        str(file),
        "--replicas",
        "3",
    ]
    subprocess.run(
        [*command, "--host", "0.0.0.0", "--cache-mb", "7", "--max-replicas", "5"], check=True
    )
    data = yaml.safe_load(file.read_text())
    schema = ServeDeploySchema.model_validate(data)
    assert schema.http_options.host == "0.0.0.0"
    (application,) = schema.applications
    options = ServeOptions.from_json(application.args)
    assert (options.replicas, options.max_replicas, options.engine.cache_mb) == (3, 5, 7)
    module, _, function = application.import_path.partition(":")
    import importlib

    built = getattr(importlib.import_module(module), function)(application.args)
    assert built._bound_deployment.name == "ingress"


def test_routing_is_stable_and_even() -> None:
    """Every context has one home; when a replica leaves, only its contexts move."""
    from crossfuse.serve.rayserve.router import order

    names = ["a", "b", "c"]
    homes = {str(key): order(str(key), names)[0] for key in range(3000)}
    assert all(900 < count < 1100 for count in Counter(homes.values()).values())
    for key, home in homes.items():
        assert order(key, ["c", "b", "a"])[0] == home
        assert order(key, ["a", "b"])[0] == (
            home if home != "c" else next(n for n in order(key, names) if n != "c")
        )


@pytest.mark.parametrize("name", ["cat", "", "x" * 100_000, "a\nb\x1b[2J", "\ud800", "é"])
def test_what_routes_is_a_digest(name: str) -> None:
    """A client's text goes into no header and no log."""
    home = home_of(name, b"key")
    assert len(home) == 40
    assert set(home) <= set("0123456789abcdef")
    assert home == home_of(name, None)
    assert home != home_of(name + "x", None)
    assert home_of(None, b"\x01") == "01"
    assert home_of(None, None) == ""


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="positive"):
        ServeOptions("b", "m", replicas=0)
    with pytest.raises(InputError, match="URL"):
        ServeOptions("b", "a/b")
    with pytest.raises(InputError, match="known"):
        ServeOptions.from_json({"bundle": "b", "name": "m", "colour": 1})
    options = ServeOptions("b", "m", replicas=2)
    assert ServeOptions.from_json(json.loads(json.dumps(options.to_json()))) == options


def replicas() -> list[int]:
    """Process ids of this machine's replicas that hold a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and b"ServeReplica:m:replica" in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def read_json(stream: Any) -> dict[str, Any]:
    text = ""
    for line in stream:
        text += line
        try:
            data: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        return data
    raise AssertionError(text)


def metrics_of(
    url: str, enough: Any = lambda counted: counted["crossfuse_requests"] > 0
) -> Counter[str]:
    """Sums over all replicas; Ray exports with some delay."""
    end = time.monotonic() + 60
    while True:
        counted: Counter[str] = Counter()
        with urllib.request.urlopen(url) as page:
            for line in page.read().decode().splitlines():
                if "crossfuse_" in line and not line.startswith("#"):
                    name = line.split("{")[0].removeprefix("ray_").removesuffix("_total")
                    counted[name] += float(line.split()[-1])
        if enough(counted) or time.monotonic() > end:
            return counted
        time.sleep(0.5)


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
