"""`crossfuse --version` ends the command before anything else is read."""

from __future__ import annotations

import pytest

from crossfuse import __version__
from crossfuse.cli import main
from crossfuse.commands.version import crossfuse


@pytest.mark.parametrize("arguments", [["--version"], ["--version", "nonsense"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert capsys.readouterr().out == f"crossfuse {__version__}\n"


def test_nothing_is_printed_without() -> None:
    assert crossfuse() is None
