"""What a report says of the machine, and of the command that made it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from importlib.metadata import version

import numpy as np
import pytest

from crossfuse.profiling.environment import command_line, environment


def test_versions_are_those_that_run() -> None:
    found = environment()
    assert found["numpy"] == np.__version__
    assert found["crossfuse"] == version("crossfuse")
    assert found["python"] == platform.python_version()
    assert found["cores"] == os.cpu_count()
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found, "it goes into a JSON report as it is"
    assert "surely-not-installed" not in found


def test_a_machine_without_proc_still_has_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", absent)
    assert environment()["processor"] == platform.processor()


def test_the_command_is_one_that_a_shell_takes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/opt/bin/crossfuse", "profile", "my bundle", "--sweep", "batch=1,8", "it's"]
    monkeypatch.setattr(sys, "argv", words)
    assert shlex.split(command_line()) == ["crossfuse", *words[1:]]
