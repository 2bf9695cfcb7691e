"""The command line: its Typer app, and `main`, which runs it.

typer and the commands are imported when the app is made, not with this module: `main` can say what
to install where they are missing. `crossfuse.commands` has what the commands do,
`crossfuse.commands.process` turns what happens into exit codes and errors.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crossfuse.commands.process import exit_code_of, leave, needs_packages, require_room

if TYPE_CHECKING:
    import typer

    app: typer.Typer

__all__ = ["COMMANDS", "app", "main"]

_NAME = "crossfuse"
_COMPLETES = f"_{_NAME.upper()}_COMPLETE"
"""The environment variable with which a shell asks for completions."""
_ASKS_HELP = frozenset({"-h", "--help", "--version"})

_MAKE, _RUN, _SERVE = "Make bundles", "Look, check, run", "Serve"


class _Command(NamedTuple):
    """A command: its name, the function's place, its panel and an example of it."""

    name: str
    function: str
    panel: str
    example: str


COMMANDS = (
    _Command("models", "inspect:models", _MAKE, "crossfuse models --json"),
    _Command(
        "export",
        "export:export",
        _MAKE,
        "crossfuse export clip --size tiny -o clip/ --target ort-cpu --target onnx",
    ),
    _Command("build", "export:build", _MAKE, "crossfuse build clip/ --target onnx"),
    _Command("sign", "sign:sign", _MAKE, "crossfuse sign clip/ --key key.pem"),
    _Command("inspect", "inspect:inspect", _RUN, "crossfuse inspect clip/"),
    _Command(
        "verify",
        "verify:verify",
        _RUN,
        "crossfuse verify clip/ --target ort-cpu --source clip --bisect",
    ),
    _Command("run", "run:run", _RUN, "crossfuse run clip/ --input in.npz --output out.npz"),
    _Command(
        "generate",
        "generate:generate",
        _RUN,
        "crossfuse generate whisper/ --audio speech.wav --language en",
    ),
    _Command(
        "profile",
        "profile:profile",
        _RUN,
        "crossfuse profile clip/ --against eager,compile --sweep batch=1,8 --html report.html",
    ),
    _Command("tune", "tune:tune", _RUN, "crossfuse tune clip/ --tolerance 0.01 --sweep batch=1,8"),
    _Command("package", "serve:package", _SERVE, "crossfuse package clip/ --for triton -o models/"),
    _Command("serve", "serve:serve", _SERVE, "crossfuse serve clip/ --port 8000 --replicas 2"),
    _Command(
        "map", "map:map_command", _SERVE, "crossfuse map clip/ --input rows/ --output answers/"
    ),
)
"""The commands, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process; the entry point of the ``crossfuse`` script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = exit_code_of(lambda: _run(given), given)
    if arguments is None:
        leave(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """The exit code of a command that came to its end.

    The steps of a standalone command, but for its handling of exceptions, which is in
    `crossfuse.commands.process`.
    """
    if not _ASKS_HELP.intersection(arguments):
        require_room()
    made = make_app()
    import typer
    from typer.main import get_command

    if os.environ.get(_COMPLETES):
        made(arguments, prog_name=_NAME)
    command: Any = get_command(made)
    try:
        with command.make_context(_NAME, arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return 0


@functools.cache
def make_app() -> typer.Typer:
    """The app of all commands.

    Raises:
        PackageError: a package of the command line is missing.
    """
    with needs_packages("typer", "rich", "click"):
        return _made()


def _made() -> typer.Typer:
    import typer

    made = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_function("version:crossfuse"))
    for command in COMMANDS:
        made.command(
            command.name, rich_help_panel=command.panel, epilog=f"Example: {command.example}"
        )(_function(command.function))
    return made


def _function(place: str) -> Callable[..., None]:
    """A command's function, from the module that its place names."""
    module, _, name = place.partition(":")
    found: Callable[..., None] = getattr(
        importlib.import_module(f"crossfuse.commands.{module}"), name
    )
    return found


def __getattr__(name: str) -> Any:
    if name == "app":
        return make_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
