"""Ray for the time of a context: on this machine alone, or an existing cluster that stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")

from crossfuse.errors import CheckError, InputError  # noqa: E402
from crossfuse.serve.cluster import connected, local_ray, require_free  # noqa: E402


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    made: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(ray, "init", lambda **options: made.append(("init", options)))
    monkeypatch.setattr(ray, "shutdown", lambda: made.append(("shutdown", {})))
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    return made


def test_a_local_ray_reports_nothing_and_ends(calls: list[tuple[str, dict[str, Any]]]) -> None:
    def fails() -> None:
        with local_ray(cpus=1.2, metrics_port=7):
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
            raise KeyError("whatever happens inside")

    with pytest.raises(KeyError):
        fails()
    (_, options), (ended, _) = calls
    assert (options["address"], options["num_cpus"]) == ("local", 2)
    assert (options["_metrics_export_port"], options["include_dashboard"]) == (7, False)
    assert ended == "shutdown"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1", "a user's own choice stands"


ORPHAN = """
import subprocess, sys
sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(sleeps, start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""


def test_what_ray_leaves_is_ended_and_nothing_else(
    calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers end by themselves, at times a minute later, and hold their connections."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    begun: list[subprocess.Popen[bytes]] = []
    left: list[int] = []

    def init(**_: object) -> None:
        begun.append(subprocess.Popen([sys.executable, "-c", ORPHAN], **pipes))
        assert begun[0].stdout is not None
        left.append(int(begun[0].stdout.readline()))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: begun[0].communicate())
    with subprocess.Popen([sys.executable, "-c", "input()"], **pipes) as mine:
        with local_ray():
            os.kill(left[0], 0)
        end = time.monotonic() + 20
        while state_of(left[0]) not in ("", "Z") and time.monotonic() < end:
            time.sleep(0.02)
        assert state_of(left[0]) in ("", "Z")
        assert mine.poll() is None
        mine.communicate(b"\n")


def state_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("The current node timed out during startup.\nSee logs"), "timed out during"),
        (PermissionError(13, "Permission denied", "/tmp/ray"), "a folder that you may write to"),
        (OSError(28, "No space left on device"), "Make room on the disk"),
        (ValueError("object store of 3 GB"), "object store of 3 GB"),
        (Exception("raylet died"), "raylet died"),
    ],
)
def test_a_ray_that_does_not_start_is_told_in_one_paragraph(
    calls: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(CheckError, match="Ray did not start") as found:
        local_ray().__enter__()
    assert said in str(found.value)
    assert len(str(found.value).splitlines()) == 1
    assert calls == [("shutdown", {})], "what it started until then is ended"


def test_an_address_without_a_cluster(
    calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected("10.0.0.1:1"):
        assert calls[0][1]["address"] == "10.0.0.1:1"

    def absent(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", absent)
    with pytest.raises(InputError, match="no Ray cluster at this address: got 10.0.0.1:1"):
        connected("10.0.0.1:1").__enter__()


def test_a_local_ray_has_a_token_of_its_own(
    calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_ray(environment={"MORE": "1"}):
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        assert os.environ["MORE"] == "1"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with local_ray():
        assert "RAY_AUTH_TOKEN" not in os.environ, "a user's own choice stands"
    monkeypatch.delenv("MORE")


def test_a_cluster_that_wants_a_token(
    calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import AuthenticationError

    def refuses(**_: object) -> None:
        raise AuthenticationError("no token")

    monkeypatch.setattr(ray, "init", refuses)
    with pytest.raises(InputError, match=r"wants a token.*RAY_AUTH_TOKEN"):
        connected("10.0.0.1:1").__enter__()


def test_a_port_that_somebody_has_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):
            with pytest.raises(InputError, match=r"can't listen there.*another port"):
                require_free(host, port)
    require_free("127.0.0.1", port)
    with pytest.raises(InputError, match="can't listen there"):
        require_free("192.0.2.1", port)
