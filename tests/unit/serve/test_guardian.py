"""What Ray starts ends with the command, whatever is killed; what is another's lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crossfuse.core.processes import began_at
from crossfuse.serve.guardian import OWNER, end_ownerless, guarded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="environments are Linux's")

COMMAND = """
import os, subprocess, sys
from crossfuse.serve.guardian import guarded

SLEEP = "import time; time.sleep(90)"
NAMED = (
    "import os, subprocess, sys; one = subprocess.Popen(['ray::Agent', '-c', sys.argv[1]], "
    "executable=sys.executable, env={}); print(one.pid, flush=True); {end}"
)
none = subprocess.DEVNULL

def started(words, **more):
    return subprocess.Popen([sys.executable, "-c", *words], stdin=none, **more)

with guarded():
    child = started([SLEEP], stdout=none, start_new_session=True)
    orphan = started([NAMED.replace("{end}", ""), SLEEP], stdout=subprocess.PIPE, text=True)
    named = int(orphan.stdout.readline())
    print(child.pid, named, flush=True)
    sys.stdin.read()
print(os.environ.get("CROSSFUSE_OWNER"))
"""


@contextmanager
def command() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A command in a group of its own, what it started and what that left."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as found:
        assert found.stdout is not None
        started = [int(word) for word in found.stdout.readline().split()]
        try:
            assert all(began_at(one) for one in started)
            yield found, started
        finally:
            found.kill()
            for one in started:
                if began_at(one):
                    os.kill(one, signal.SIGKILL)


def are_gone(processes: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while any(began_at(one) for one in processes) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(began_at(one) for one in processes)


def guardian_of(process: int) -> int:
    """The process whose words say that it looks after that one."""
    mark = f"{process}:{began_at(process)}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark in words:
            return int(entry.name)
    raise AssertionError("there is none")


def test_what_a_killed_command_started_ends() -> None:
    with command() as (killed, ours), command() as (other, theirs):
        guardian = guardian_of(killed.pid)
        killed.kill()
        killed.wait()
        assert are_gone([*ours, guardian])
        assert other.poll() is None
        assert began_at(theirs[0]), "of a command that lives"


def test_what_a_killed_guardian_leaves_the_next_command_ends() -> None:
    with command() as (killed, ours), command() as (_, theirs):
        os.kill(guardian_of(killed.pid), signal.SIGKILL)
        killed.kill()
        killed.wait()
        time.sleep(0.3)
        assert began_at(ours[0]), "nobody is there to end it"
        with guarded():
            assert are_gone(ours[:1])
        assert began_at(theirs[0])


def test_a_command_that_ends_takes_its_guardian_along() -> None:
    with command() as (one, ours):
        guardian = guardian_of(one.pid)
        said, _ = one.communicate("")
        assert (one.returncode, said) == (0, "None\n")
        assert are_gone([guardian])
        assert began_at(ours[0]), "who ends, ends its own"


def test_other_environments_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER, "not a process")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as one:
        end_ownerless()
        with guarded():
            assert os.environ[OWNER] == f"{os.getpid()}:{began_at(os.getpid())}"
        assert os.environ[OWNER] == "not a process"
        assert one.poll() is None
        one.communicate(b"\n")


INSIDE = """
import os, subprocess, sys
from crossfuse.serve.guardian import guarded

with guarded():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print("up", flush=True)
    sys.stdin.readline()
    print("lives" if child.poll() is None else "killed", flush=True)
    child.communicate(b"\\n")
"""


def test_a_command_in_a_container_is_no_business_of_the_hosts() -> None:
    """The id that it names is another process's here, or nobody's."""
    inside = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may make no PID namespaces")
    with subprocess.Popen(
        [*inside, sys.executable, "-c", INSIDE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "up\n"
        end_ownerless()
        said, _ = one.communicate("\n", timeout=20)
    assert (one.returncode, said) == (0, "lives\n")
