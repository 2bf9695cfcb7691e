"""The command line's app: made when it is needed, helped by panels and examples, completed by
shells."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import crossfuse
from crossfuse.cli import COMMANDS, app, main
from crossfuse.core.target import TARGETS
from crossfuse.errors import PackageError
from crossfuse.models.registry import ZOO

SOURCES = str(Path(crossfuse.__file__).parents[1])


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": SOURCES} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


WITHOUT = """
import sys
for name in ("typer", "rich", "click"):
    sys.modules[name] = None
"""


def test_it_is_imported_without_its_packages() -> None:
    done = python(WITHOUT + "import crossfuse.cli; print(crossfuse.cli.main.__name__)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "main\n", "")
    done = python(WITHOUT + "import crossfuse.cli; crossfuse.cli.main(['models'])")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: the command line needs a package that can't be imported" in done.stderr
    assert "pip install 'crossfuse[cpu]'" in done.stderr
    done = python(WITHOUT + "from crossfuse.cli import app")
    assert done.returncode == 1
    assert "crossfuse[cpu]" in done.stderr.splitlines()[-1]
    assert issubclass(PackageError, crossfuse.InputError)


def test_it_imports_nothing_heavy() -> None:
    code = "import crossfuse.cli, sys; print(*sorted(sys.modules))"
    loaded = set(python(code).stdout.split())
    assert not loaded & {"typer", "rich", "torch", "onnx", "onnx_ir", "onnxruntime"}
    code = (
        "import sys\nfrom crossfuse.cli import main\ntry:\n    main(['export', '--help'])\n"
        "except SystemExit:\n    print('LOADED', *sorted(sys.modules))"
    )
    loaded = set(python(code).stdout.rpartition("LOADED")[2].split())
    assert "crossfuse.commands.export" in loaded
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxruntime", "transformers"}


def test_there_is_one_app_and_nothing_else() -> None:
    import crossfuse.cli as module

    assert module.app is app
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_python_dash_m_is_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crossfuse", "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": SOURCES},
    )
    assert (done.returncode, done.stdout) == (0, f"crossfuse {crossfuse.__version__}\n")


def parsed(arguments: list[str]) -> Any:
    """The context of a command line that is parsed and not run."""
    group: Any = get_command(app)
    with group.make_context("crossfuse", arguments) as context:
        name, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        return command.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_with_an_example_that_parses(command: Any) -> None:
    program, name, *arguments = shlex.split(command.example)
    assert (program, name) == ("crossfuse", command.name)
    parsed([name, *arguments])
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"Example: {command.example}" in " ".join(done.stdout.split())
    summary = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert f"│ {name} " in summary
    assert f"─ {command.panel} ─" in summary


def test_options_are_in_panels_and_closed_sets_are_listed() -> None:
    text = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "160"}).stdout
    for panel in ("The model", "What is built", "Options"):
        assert f"─ {panel} ─" in text
    assert "fp32|fp16|bf16|mixed" in text
    assert "tiny|published" in text
    assert "INPUT:AXIS=NAME[:MIN:MAX]" in text, "brackets are no markup"
    every = {option for command in COMMANDS for option in parsed_options(command.name)}
    assert {"--install-completion", "--show-completion"} <= set(options_of(get_command(app)))
    assert {"--target", "--json", "--against", "--sm"} <= every


def options_of(command: Any) -> list[str]:
    return [text for parameter in command.params for text in parameter.opts]


def parsed_options(name: str) -> list[str]:
    group: Any = get_command(app)
    return options_of(group.commands[name])


def completed(words: str, shell: str = "bash") -> list[str]:
    """What a shell is told to complete the last word with."""
    given = words.split(" ")
    environment = {
        "_CROSSFUSE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(given) - 1),
    }
    done = python("from crossfuse.cli import main; main([])", **environment)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion() -> None:
    assert completed("crossfuse export cl") == ["clip"]
    assert completed("crossfuse export ") == list(ZOO)
    assert completed("crossfuse export clip --target ort-") == ["ort-cpu", "ort-cuda"]
    assert completed("crossfuse build b --target ") == list(TARGETS)
    assert completed("crossfuse export clip --precision f") == ["fp32", "fp16", "fp8"]
    assert completed("crossfuse export clip --size ") == ["tiny", "published"]
    assert completed("crossfuse verify b --source q") == ["qformer"]
    assert completed("crossfuse profile b --against eager,comp") == [
        "eager,compile",
        "eager,compile-max",
    ]
    assert completed("crossfuse in") == ["inspect"]


def test_the_completion_script_is_shown() -> None:
    done = python("from crossfuse.cli import main; main([])", _CROSSFUSE_COMPLETE="source_bash")
    assert done.returncode == 0
    assert "_CROSSFUSE_COMPLETE=complete_bash" in done.stdout


def test_foreign_targets_remain_possible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that no command knows is refused by the registry, not by the parser."""
    with pytest.raises(SystemExit) as end:
        main(["export", "clip", "-o", str(tmp_path / "b"), "--target", "mine", "--json"])
    assert end.value.code == 2
    got = capsys.readouterr()
    assert '"kind": "input"' in got.out
    assert "unknown target: got 'mine'" in got.err
