"""The code in the documentation: read from the pages, and run.

A comment before each block of Python or shell says what a test does with it:

- ``<!-- tested -->``: it is run with the quick tests.
- ``<!-- tested: slow -->``: with the slow ones. A reason after ``slow,`` tells why a test of its
  own runs it.
- ``<!-- tested: alone -->``, ``<!-- tested: slow alone -->``: in a process of its own.
- ``<!-- not run: REASON -->``: it is not.
- ``<!-- file: NAME -->``: it is a file that the page's other blocks find.
- ``<!-- printed -->`` before a block of text: the lines are among what the block before printed, in
  this order, whatever the spaces; ``…`` stands for anything.

The blocks of a page are run one after the other in one folder, Python in one process; what they
import from the folder and what they register is forgotten after the page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crossfuse.cli import main
from crossfuse.core.target import TARGETS

__all__ = ["CODE", "PAGES", "ROOT", "Block", "blocks_of", "holds", "in_process", "run", "run_page"]

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md")),
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
CODE = {"sh", "bash", "shell", "console", "python", "py", "pycon"}

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<mark>[^\n]*?) -->\n(?P=indent))?"
    r"```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the comment before it, its text, and the line it begins in."""

    language: str
    mark: str
    text: str
    line: int

    @property
    def tested(self) -> bool:
        """Whether `run_page` runs it."""
        return self.mark in ("tested", "tested: slow", "tested: alone", "tested: slow alone")

    @property
    def slow(self) -> bool:
        """Whether it is left to the slow tests."""
        return self.mark.startswith("tested: slow")

    @property
    def alone(self) -> bool:
        """Whether a process of its own runs it."""
        return self.tested and self.mark.endswith("alone")


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(
            found["language"],
            found["mark"] or "",
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            text.count("\n", 0, found.start()) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def commands_in(text: str) -> list[list[str]]:
    """The commands of a shell block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with this environment's scripts."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def in_process(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """A ``crossfuse`` command in this process, which has PyTorch already: what it printed."""
    with pytest.raises(SystemExit) as ended:
        main(command[1:])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    return captured.out


def run_page(
    blocks: list[Block], folder: Path, capsys: pytest.CaptureFixture[str]
) -> dict[int, str]:
    """Run the tested blocks, in a folder that is the working folder.

    Returns:
        what each block printed on standard output, by its line in the page.
    """
    with _forgotten(folder):
        return _run_blocks(blocks, folder, capsys)


@contextmanager
def _forgotten(folder: Path) -> Iterator[None]:
    """Afterwards no module of the folder is imported, and the targets are those before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TARGETS, "_registered", dict(TARGETS._registered))
        try:
            yield
        finally:
            for name, module in list(sys.modules.items()):
                if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
                    del sys.modules[name]


def _run_blocks(
    blocks: list[Block], folder: Path, capsys: pytest.CaptureFixture[str]
) -> dict[int, str]:
    namespace: dict[str, Any] = {"__name__": "documented"}
    printed: dict[int, str] = {}
    last = None
    for block in blocks:
        if block.tested:
            last = block.line
            printed[last] = _run_block(block, folder, namespace, capsys)
        elif block.mark.startswith("file: "):
            file = folder / block.mark.removeprefix("file: ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.mark == "printed" and last is not None:
            missing = holds(printed[last], block.text)
            assert missing is None, f"line {block.line}: {missing!r} not in\n{printed[last]}"
        elif block.language in CODE:
            last = None
    return printed


def _run_block(
    block: Block, folder: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> str:
    if block.alone:
        return run([sys.executable, "-c", block.text], folder).stdout
    if block.language == "python":
        capsys.readouterr()
        # A file, so that errors show its lines; the page's own `from __future__`, not this one's.
        file = folder / f"line_{block.line}.py"
        file.write_text(block.text)
        exec(compile(block.text, str(file), "exec", dont_inherit=True), namespace)
        return capsys.readouterr().out
    outputs = []
    for command in commands_in(block.text):
        if command[0] == "crossfuse":
            outputs.append(in_process(command, capsys))
        else:
            outputs.append(run(command, folder).stdout)
    return "".join(outputs)


def holds(printed: str, promised: str) -> str | None:
    """The first promised line that is not printed after those before it, or None."""
    text, begin = " ".join(printed.split()), 0
    for line in promised.splitlines():
        pattern = ".*?".join(re.escape(part) for part in " ".join(line.split()).split("…"))
        found = re.compile(pattern).search(text, begin)
        if found is None:
            return line
        begin = found.end()
    return None
