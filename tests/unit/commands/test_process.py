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


@pytest.mark.parametrize("last", [MemoryError(), OSError(12, "Cannot allocate memory")])
@pytest.mark.parametrize("given", [[], ["verify", "--json"]])
def test_what_can_not_even_be_told_ends_in_a_paragraph_and_a_code(
    last: BaseException,
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Memory that is used up makes the telling fail, too: at any of its steps."""

    def fails(*_: Any, **__: Any) -> Any:
        raise last

    monkeypatch.setattr("crossfuse.commands.process.own", fails)
    assert exit_code_of(raising(MemoryError()), given) == 2
    monkeypatch.undo()
    monkeypatch.setattr("crossfuse.commands.process._print_anywhere", fails)
    assert exit_code_of(lambda: 0, given) == 2
    monkeypatch.undo()
    ours = InputError("x")
    last = MemoryError()
    monkeypatch.setattr(InputError, "paragraph", fails)
    assert exit_code_of(raising(ours), given) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("error: ") and "memory" in line for line in said), said


def test_without_memory_for_colours_the_paragraph_is_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("crossfuse.commands.output.Output.error", fails)
    assert exit_code_of(raising(InputError("no such thing", got="x")), []) == 2
    assert capsys.readouterr().err == "error: no such thing: got x.\n"


def test_a_command_with_almost_no_memory_left_ends_in_a_paragraph() -> None:
    """As the documented exit code, whatever the limit stops."""
    code = (
        "import resource, sys\n"
        "from crossfuse import cli\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)\n"
        "cli.main(['verify', 'nowhere'])\n"
    )
    told = ""
    for more in (0, 1 << 18, 1 << 21):
        command = [sys.executable, "-c", code, str(more)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2, (more, done.stderr)
        # Where nothing is left, not even the line may fit.
        assert len(done.stderr.splitlines()) <= 1, (more, done.stderr)
        told += done.stderr
    assert "memory ran out" in told


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_loading_numpy_takes_is_asked_for_before(kind: str) -> None:
    """Or OpenBLAS ends the process, with exit code 1 and words of its own."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.{kind}, (64 << 20,) * 2)\n"
        "from crossfuse import cli\n"
        "cli.main(sys.argv[1:])\n"
    )

    def said(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stderr

    found, text = said("verify", "nowhere")
    assert found == 2
    assert text.startswith("error: memory ran out before the work began")
    assert len(text.splitlines()) == 1
    assert "128 MB" in text
    assert said("--help") == (0, "")


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
