"""Temporary folders end with their commands, or with the next one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from crossfuse.core.scratch import scratch_folder

HOLDS = """
import sys
from crossfuse.core.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_next_run_removes_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "crossfuse-scratch-mine").mkdir()  # without a lock: nobody knows whose
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        other = Path(process.stdout.readline().decode().strip())
        assert other.parent == tmp_path
        with scratch_folder() as mine:
            assert mine.is_dir()
            assert other.is_dir(), "of a living process"
        assert not mine.exists()
        process.kill()
    assert other.is_dir()
    with scratch_folder():
        assert not other.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["crossfuse-scratch-mine"]
