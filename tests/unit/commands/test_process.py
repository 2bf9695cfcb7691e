"""Whatever a command does ends in an exit code, and in one paragraph where it is an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from crossfuse.commands.process import exit_code_of, needs_packages
from crossfuse.errors import FusionError, InputError, PackageError


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "kind", "text"),
    [
        (InputError("no such thing", got="x"), 2, "input", "error: no such thing: got x.\n"),
        (FusionError("not fused"), 1, "fusion", "error: not fused.\n"),
        (KeyboardInterrupt(), 130, "interrupted", "error: interrupted.\n"),
        (ZeroDivisionError("d"), 2, "internal", "error: something failed that crossfuse did not"),
        (BrokenPipeError(32, "Broken pipe"), 2, "input", "error: Broken pipe.\n"),
        (ModuleNotFoundError("x", name="ray.data"), 2, "package", r"crossfuse[serve]"),
    ],
)
def test_errors_are_a_paragraph_a_code_and_an_object(
    error: BaseException, code: int, kind: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(raising(error), []) == code
    got = capsys.readouterr()
    assert (got.out, got.err.count("\n")) == ("", 1)
    assert text in got.err
    assert exit_code_of(raising(error), ["run", "--json"]) == code
    got = capsys.readouterr()
    assert json.loads(got.out)["error"]["kind"] == kind
    assert text in got.err


def test_a_commands_own_code_passes() -> None:
    assert exit_code_of(lambda: 0, []) == 0
    assert exit_code_of(lambda: 7, []) == 7
    with pytest.raises(SystemExit):
        exit_code_of(raising(SystemExit(3)), [])


class ParserError(Exception):
    """Like the parser's, whose package differs between its versions."""

    param: Any = None
    ctx: Any = None
    possibilities: Any = None

    def __init__(self, text: str, param: str | None = None, possible: Any = None) -> None:
        super().__init__(text)
        self.text, self.possibilities = text, possible
        if param is not None:
            self.param = type("Param", (), {"name": param})()

    def show(self) -> None: ...

    def format_message(self) -> str:
        return self.text


@pytest.mark.parametrize("prefix", ["", "Value error, "])
def test_values_outside_a_closed_set(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"Invalid value for '--io-dtype': {prefix}'fp61' is not one of 'fp32', 'fp16'."
    assert exit_code_of(raising(ParserError(text, "io_dtype")), []) == 2
    assert capsys.readouterr().err == (
        "error: unknown io dtype (--io-dtype): got 'fp61', expected fp32, fp16. Did you mean "
        "'fp16'?\n"
    )
    text = f"Invalid value for '--size' / '-s': {prefix}'a' is not one of 'tiny', 'published'."
    exit_code_of(raising(ParserError(text)), [])
    assert "got 'a', expected tiny, published" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ParserError("No such command 'x'."), "no such command 'x'. `crossfuse --help` says what"),
        (ParserError("No such option: --x", None, ["--a"]), "no such option: --x. Did you mean "),
        (
            ParserError("No such option: --x Did you mean --a?", None, ["--a"]),
            "no such option: --x. Did you mean --a?",
        ),
        (
            ParserError("No --x. (Possible options: --a, --b)", None, ["--a", "--b"]),
            "'--a' or '--b'",
        ),
    ],
)
def test_usage(error: ParserError, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(error), ["--json"]) == 2
    got = capsys.readouterr()
    assert json.loads(got.out)["error"]["kind"] == "usage"
    assert expected in got.err
    assert "Possible options" not in got.err


def test_packages_that_are_missing_are_named_and_others_pass() -> None:
    with pytest.raises(PackageError, match=r"crossfuse\[cpu\]"), needs_packages("typer", "rich"):
        raise ModuleNotFoundError("No module named 'typer.main'", name="typer.main")
    with pytest.raises(ModuleNotFoundError, match="torch"), needs_packages("typer"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_a_package_that_holds_the_end_up_does_not() -> None:
    """All that was printed and registered is done; threads that would go on for a minute are not
    waited for."""
    code = (
        "import atexit, sys, threading, time, types\n"
        "sys.modules['ray'] = types.ModuleType('ray')\n"
        "from crossfuse import cli\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "atexit.register(print, 'put away')\n"
        "cli.exit_code_of = lambda run, given: print('done') or 7\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=40
    )
    assert (done.returncode, done.stdout) == (7, "done\nput away\n"), done.stderr
