"""Children end with their parents, forks are told, quotas are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossfuse.core.processes import (
    PARENT,
    cpu_limit,
    descendants,
    end_those,
    for_child,
    require_own_process,
)
from crossfuse.errors import InputError

CHILD = """
import sys, time
from crossfuse.core.processes import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT_OF = f"""
import os, subprocess, sys
from crossfuse.core.processes import for_child
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=for_child(), stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT_OF]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(child)


ORPHANS = """
import subprocess, sys
# Without the parent's pipes, whose reader would wait for it.
none = subprocess.DEVNULL
sleep = "import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", sleep], stdin=none, stdout=none)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_processes_of_processes_are_known_and_ended_when_these_are_gone() -> None:
    command = [sys.executable, "-c", ORPHANS]
    before = descendants()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        ours = descendants()
        assert {parent.pid, child} <= ours.keys() - before.keys()
        assert os.getpid() not in ours
        parent.communicate()
    end_those({child: "0"})  # another one, that had this id before
    assert is_alive(child)
    end_those({child: ours[child], parent.pid: ours[parent.pid]})
    until = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(child)


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    environment = for_child() | {PARENT: "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, timeout=60, check=False)
    assert done.returncode == 1


def test_a_fork_is_told() -> None:
    require_own_process(os.getpid())
    with pytest.raises(InputError, match="before this process was forked.*after the fork"):
        require_own_process(os.getpid() + 1)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_quotas_of_both_versions(
    tmp_path: Path, files: dict[str, str], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit
