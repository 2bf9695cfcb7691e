"""A bundle that was not written here, tried in a process of its own: loaded, and its smallest
reference inputs answered, within limits of time and memory.

A graph may end the process that opens it, never come to an end or take all memory. So whoever
verifies or serves a stranger's bundle learns that from a child. A bundle that passed, and one that
was written here, is not tried again: its manifest's digest is remembered in the user's cache.
Who trusts all the bundles that they use sets ``CROSSFUSE_TRUST_BUNDLES=1``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.files import user_cache
from crossfuse.core.processes import end_with_parent, for_child
from crossfuse.core.target import TARGETS
from crossfuse.errors import Advice, BundleError, CrossfuseError, Door, Said
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.runtime.tuned import chosen_target

__all__ = ["TRUST", "TrialLimits", "main", "require_tried", "trust"]

TRUST = "CROSSFUSE_TRUST_BUNDLES"
COMMAND = ("-P", "-m", "crossfuse.parity.trial")
"""-P: the working folder may be a stranger's, and is no place to import from."""
_REFUSED = 17
"""Exit status of a child that was told why not."""
_MEMORY = re.compile(r"bad.?alloc|allocate|memory", re.IGNORECASE)
_DO = "Don't use this bundle, unless you know who made it"


@dataclass(frozen=True)
class TrialLimits:
    """What a bundle may take to load and to answer once.

    Args:
        seconds: from the start of the process.
        memory: bytes beyond those of its files, twice.
    """

    seconds: float = 900.0
    memory: int = 16 << 30


def require_tried(
    bundle: Bundle,
    target: str | None,
    options: SessionOptions | None = None,
    limits: TrialLimits | None = None,
) -> None:
    """Try a bundle in a child process, unless it was written here or passed before.

    Args:
        bundle: to try.
        target: of it; where omitted, the best that runs here.
        options: of the session.
        limits: of the child.

    Raises:
        BundleError: it ended the child, took too long or too much memory, or can't be loaded.
    """
    chosen, within = options or SessionOptions(), limits or TrialLimits()
    name = target or chosen_target(bundle)
    mark = _mark(bundle, name, chosen)
    if os.environ.get(TRUST) == "1" or _mark(bundle).exists() or mark.exists():
        return
    held = sum(entry.size for entry in bundle.manifest.files.values())
    known = TARGETS.get(name)
    on_gpu = known is not None and known.needs_gpu and chosen.provider is None
    request = {
        "bundle": str(bundle.path.absolute()),
        "target": name,
        "options": asdict(chosen),
        # CUDA reserves addresses without end.
        "memory": None if on_gpu else within.memory + 2 * held,
        "seconds": within.seconds,
    }
    command = [sys.executable, *COMMAND, json.dumps(request)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=within.seconds,
            env=for_child(),
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(
            f"the bundle gave no answer within {within.seconds:g} s when it was tried in a process "
            "of its own",
            where=bundle.path,
            do=_DO,
        ) from error
    _require_passed(done, bundle)
    bundle.require_unreplaced()
    _remember(mark)


def _require_passed(done: subprocess.CompletedProcess[str], bundle: Bundle) -> None:
    if done.returncode == 0:
        return
    if done.returncode == _REFUSED:
        with suppress(ValueError, KeyError, TypeError, IndexError):
            said = json.loads(done.stdout.splitlines()[-1])
            fields = {
                name: None
                if said["command line"][name] is None
                else Advice("{}", Said(str(said["command line"][name]), str(said["python"][name])))
                for name in ("what", "where", "got", "expected", "do")
            }
            what = fields.pop("what") or "the bundle was refused"
            raise BundleError(what, **fields)
    raise BundleError(
        "the bundle ended the process that it was tried in",
        where=bundle.path,
        got=_end_of(done.returncode),
        do=_DO,
    )


def _end_of(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return signal.Signals(-status).name
    return f"exit status {status}"


def trust(bundle: Bundle) -> Bundle:
    """Remember a bundle that was written here: it is not tried. Gives the bundle."""
    _remember(_mark(bundle))
    return bundle


def _mark(bundle: Bundle, target: str | None = None, options: SessionOptions | None = None) -> Path:
    """Where it is remembered, by all that decides what the engine does."""
    about = "" if options is None else json.dumps([target, asdict(options)], sort_keys=True)
    text = bundle.manifest.dumps() + about
    return user_cache() / "tried" / hashlib.sha256(text.encode()).hexdigest()


def _remember(mark: Path) -> None:
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def main() -> None:
    """The child: limits itself, loads the bundle and answers once."""
    end_with_parent()
    request = json.loads(sys.argv[1])
    _limit(request["memory"], int(request["seconds"]))
    bundle = open_bundle(Path(request["bundle"]))
    options = SessionOptions(**request["options"])
    try:
        with load(bundle, request["target"], options) as session:
            _answer(session, bundle)
    except BundleError as error:
        fields = {door.value: error.fields(door) for door in Door}
        sys.stdout.write(json.dumps(fields) + "\n")
        raise SystemExit(_REFUSED) from None


def _answer(session: Session, bundle: Bundle) -> None:
    """What a target makes of its reference inputs is the parent's to judge, but for memory."""
    inputs = smallest_inputs(bundle)
    if inputs is None:
        return
    try:
        session.run(
            {spec.name: inputs[spec.name] for spec in session.inputs if spec.name in inputs}
        )
    except CrossfuseError as error:
        if _MEMORY.search(str(error)):
            raise BundleError(
                "the bundle asks for more memory than it may have when it is tried",
                where=bundle.path,
                do=_DO,
            ) from error


def _limit(memory: int | None, seconds: int) -> None:
    """Where the system has such limits."""
    try:
        import resource
    except ImportError:
        return
    cores = os.cpu_count() or 1
    wanted = [(resource.RLIMIT_CPU, seconds * cores + 1), (resource.RLIMIT_CORE, 0)]
    if memory is not None:
        wanted.append((resource.RLIMIT_DATA, memory))
    for kind, value in wanted:
        with suppress(OSError, ValueError):
            _, most = resource.getrlimit(kind)
            resource.setrlimit(kind, (value if most < 0 else min(value, most), most))


if __name__ == "__main__":
    main()
