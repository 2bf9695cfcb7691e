"""Commands and calls that may take so much memory, of many sizes: each does its work, or says in
one paragraph why not, or is ended by native code that finds none left. What was there stays whole.

Programs are started within their limit, so that imports meet it, and commands run in forked
children that have imported what they need, so that their work does. The address space
(``ulimit -v``) is limited, or the data. Sizes lie between those with which the command line's own
modules can be imported and those with which nothing is refused, all magnitudes alike.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from campaigns.commands import COMMANDS, HAVE, Command, bundle_there, require_bundle
from campaigns.forks import begun, begun_anew, ended, finished
from campaigns.judging import outcome
from campaigns.limited_calls import KINDS, Kind, limit_to, status_of, used
from campaigns.operations import Outcomes
from crossfuse import cli

LEAST, MOST = 1 << 16, 1 << 30
"""Bytes more than it has, with which what is loaded is tried."""
TURN = 0.005
CALLS = Path(__file__).with_name("limited_calls.py")

Limited = Callable[[], object]
"""Called in a command's process before it begins."""


class Way(Protocol):
    """How commands are started within limits."""

    commands: Mapping[str, Command]

    def begin(self, command: Command, at: Path, limited: Limited) -> int:
        """Start a command in a folder; its process id."""

    def limit(self, kind: Kind, needs: int, chance: random.Random) -> Limited:
        """A limit, where the command needs so many bytes."""


class Programs:
    """Programs, started within the limit. Ray's are not among them, nor what needs a stand-in."""

    commands: Mapping[str, Command] = {
        name: one for name, one in COMMANDS.items() if name not in ("map", "generate")
    }

    def __init__(self) -> None:
        code = "import crossfuse.cli, rich.console; print(open('/proc/self/status').read())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        self.least = {kind: used(done.stdout.decode(), kind.most) for kind in KINDS}

    def begin(self, command: Command, at: Path, limited: Limited) -> int:
        return begun_anew(["-m", "crossfuse", *command.words(at)], at / "tmp", limited, at.parent)

    def limit(self, kind: Kind, needs: int, chance: random.Random) -> Limited:
        return partial(limit_to, kind, between(self.least[kind], 2 * needs, chance))


class Work:
    """Commands in forked children of a process that has imported what they need; whether there is
    room for that isn't asked."""

    commands: Mapping[str, Command] = COMMANDS

    def begin(self, command: Command, at: Path, limited: Limited) -> int:
        def prepares() -> None:
            command.prepares()
            cli.require_room = int  # type: ignore[assignment]
            limited()

        return begun(command.words(at), at / "tmp", prepares, at.parent)

    def limit(self, kind: Kind, needs: int, chance: random.Random) -> Limited:
        has = used(status_of("self"), kind.now)
        return partial(limit_to, kind, has + between(LEAST, MOST, chance))


class Calls:
    """Calls in a program that limits itself when it has loaded what it needs."""

    commands: Mapping[str, Command] = {
        "calls": Command(lambda at: [str(CALLS), str(at / "b")], bundle_there, require_bundle, HAVE)
    }

    def begin(self, command: Command, at: Path, limited: Limited) -> int:
        words = limited() or []
        assert isinstance(words, list)
        return begun_anew([*command.words(at), *words], at / "tmp", int, at.parent)

    def limit(self, kind: Kind, needs: int, chance: random.Random) -> Limited:
        more = between(LEAST, MOST, chance)
        return lambda: [kind.name, str(more)]


def between(least: int, most: int, chance: random.Random) -> int:
    """A size of any magnitude."""
    return int(math.exp(chance.uniform(math.log(least), math.log(max(least, most)))))


def memory_of_programs(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Programs, started within the limit."""
    return _each(Programs(), times, folder, chance)


def memory_of_work(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Commands whose modules are loaded."""
    return _each(Work(), times, folder, chance)


def memory_of_calls(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Loads and calls in a program."""
    return _each(Calls(), times, folder, chance)


def _each(way: Way, times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Each command in turn; those that ``CROSSFUSE_CAMPAIGN_COMMANDS`` names, or all."""
    names = os.environ.get("CROSSFUSE_CAMPAIGN_COMMANDS", ",".join(way.commands)).split(",")
    os.environ.update(CROSSFUSE_CACHE=str(folder / "cache"), CROSSFUSE_TRUST_BUNDLES="0")
    found: Outcomes = Counter()
    for number, name in enumerate(names):
        command, place = way.commands[name], folder / name
        needs = _needs(way, command, place)
        for _ in range(times // len(names) + (number < times % len(names))):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            (place / "tmp").mkdir(parents=True)
            command.starts(place)
            kind = chance.choice(KINDS)
            limited = way.limit(kind, needs[kind], chance)
            process = way.begin(command, place, limited)
            came = outcome(process, command, place, f"{name}, {limited}", native=True)
            found[f"{name}: {came}"] += 1
            shutil.rmtree(place)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for left in ("stderr", "modules"):
        (folder / left).unlink(missing_ok=True)
    return found


def _needs(way: Way, command: Command, place: Path) -> Mapping[Kind, int]:
    """What a command takes where nothing limits it; what it imports is imported here, too."""
    for turn in range(2):
        (place / "tmp").mkdir(parents=True)
        command.starts(place)
        if turn:
            process = way.begin(command, place, lambda: None)
            most, status = _peaks_of(process)
            assert status == 0, (place.parent / "stderr").read_text()
        elif isinstance(way, Work):
            finished(command.words(place), place / "tmp", command.prepares)
        shutil.rmtree(place)
    return most


def _peaks_of(process: int) -> tuple[dict[Kind, int], int | None]:
    """Wait for a process: the most that it had of each kind, and its status."""
    most = dict.fromkeys(KINDS, 0)
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        said = status_of(str(process))
        for kind in KINDS:
            most[kind] = max(most[kind], used(said, kind.most))
        time.sleep(TURN)
    return most, ended(process, 1)[0]


CAMPAIGNS = (memory_of_programs, memory_of_work, memory_of_calls)
