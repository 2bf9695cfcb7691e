"""Bundles under attack, kills and crowds, as often as asked; `docs/reliability.md` tells of them.

``PYTHONPATH=src:tests python tests/campaigns/operations.py 1000`` runs each campaign a thousand
times and prints what came of it. Every function gives how often each outcome came; an outcome that
is not allowed raises.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossfuse import CrossfuseError, runtime
from crossfuse.bundle.graph_checks import require_safe_graph
from crossfuse.bundle.store import entry_of, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.core.npz import load_arrays, save_arrays
from crossfuse.parity.session_check import reference_of, smallest_inputs

OLD_BUNDLE = Path(__file__).parent.parent / "data" / "bundle-0.1.0"
Outcomes = Counter[str]


def outcome(work: Callable[[], object]) -> str:
    """``answered`` or ``refused``; a refusal is one paragraph, and anything else is raised."""
    try:
        work()
    except CrossfuseError as error:
        refusal = str(error)
    else:
        return "answered"
    assert len(refusal.splitlines()) == 1, refusal
    return "refused"


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut off, doubled or moved."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed))
        how = chance.randrange(4)
        if how < 2:
            changed[place] = chance.randrange(256)
        elif how == 2:
            del changed[place : place + chance.randint(1, 64)]
        else:
            changed[place:place] = changed[place : place + chance.randint(1, 64)]
        if not changed:
            return b""
    return bytes(changed)


def with_file(bundle: Path, name: str, data: bytes) -> None:
    """Put a file into a bundle, its size and hash in the manifest, as an attacker would."""
    (bundle / name).write_bytes(data)
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    entry = entry_of(bundle / name)
    manifest["files"][name] = {"size": entry.size, "sha256": entry.sha256}
    file.write_text(json.dumps(manifest))


def manifests(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Manifests with a value of another kind, or bytes changed."""
    bundle = Path(shutil.copytree(OLD_BUNDLE, folder / "b"))
    file = bundle / "manifest.json"
    text = file.read_bytes()
    found: Outcomes = Counter()
    for turn in range(times):
        file.write_bytes(mutated(text, chance) if turn % 2 else damaged(text, chance))
        found[outcome(lambda: open_bundle(bundle).verified(["weights.bin"]))] += 1
    return found


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1.5,
    "",
    "../x",
    "/etc/passwd",
    [],
    {},
    [[]],
    "é",
)


def mutated(text: bytes, chance: random.Random) -> bytes:
    """A value of the JSON, at any depth, replaced by a strange one."""
    data = json.loads(text)
    at: Any = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = chance.choice(keys)
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.2:
            at[key] = chance.choice(STRANGE)
            return json.dumps(data).encode()
        at = inner


def archives(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """NPZ files, damaged: of inputs, and a bundle's reference with its hash made to fit."""
    bundle = Path(shutil.copytree(OLD_BUNDLE, folder / "b"))
    reference = (bundle / "reference.npz").read_bytes()
    save_arrays(folder / "whole.npz", {"a": np.arange(60.0).reshape(3, 4, 5), "b": np.eye(3) > 0})
    whole = (folder / "whole.npz").read_bytes()
    found: Outcomes = Counter()
    for turn in range(times):
        if turn % 2:
            (folder / "a.npz").write_bytes(damaged(whole, chance))
            found[outcome(lambda: load_arrays(folder / "a.npz"))] += 1
        else:
            with_file(bundle, "reference.npz", damaged(reference, chance))
            found[outcome(lambda: reference_of(open_bundle(bundle)))] += 1
    return found


def graphs(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Graphs, damaged, as they are looked at before an engine sees them."""
    files = open_bundle(OLD_BUNDLE).manifest.files
    data = (OLD_BUNDLE / "query.ort-cpu.onnx").read_bytes()
    found: Outcomes = Counter()
    for _ in range(times):
        (folder / "g.onnx").write_bytes(damaged(data, chance))
        found[outcome(lambda: require_safe_graph(folder / "g.onnx", files))] += 1
    return found


WRITES = """
import sys
from pathlib import Path
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.writer import write_bundle
bundle = open_bundle(Path(sys.argv[1]))
names = list(bundle.manifest.files)
print("begun", flush=True)
while True:
    with write_bundle(sys.argv[2]) as writer:
        writer.adopt(bundle, names, copied=names)
        writer.commit(bundle.manifest)
"""


def copied(source: Path, destination: Path) -> None:
    """A bundle written somewhere by crossfuse's own writer."""
    bundle = open_bundle(source)
    with write_bundle(destination) as writer:
        names = list(bundle.manifest.files)
        writer.adopt(bundle, names, copied=names)
        writer.commit(bundle.manifest)


def kills(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Writers killed at any moment: the old or the new bundle is there, whole, with its user's
    file, and the next write leaves nothing else."""
    place = folder / "b"
    copied(OLD_BUNDLE, place)
    (place / "notes.md").write_text("mine")
    found: Outcomes = Counter()
    for _ in range(times):
        command = [sys.executable, "-c", WRITES, str(OLD_BUNDLE), str(place)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.random() * 0.15)
            process.send_signal(signal.SIGKILL)
        bundle = open_bundle(place)
        bundle.verified(bundle.manifest.files)
        found["left a folder" if len(list(folder.iterdir())) > 1 else "left nothing"] += 1
        copied(OLD_BUNDLE, place)
        assert (place / "notes.md").read_text() == "mine"
        assert [path.name for path in folder.iterdir()] == ["b"]
    return found


def changes(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Eight threads that each add to one bundle: nothing is lost."""
    place = folder / "b"
    copied(OLD_BUNDLE, place)
    names = [f"added-{turn}" for turn in range(times)]

    def adds(mine: list[str]) -> None:
        for name in mine:
            with write_bundle(place, modify=True) as writer:
                old = open_bundle(place)
                writer.adopt(old, sorted(old.manifest.files))
                writer.file(name).write_text(name)
                writer.commit(replace(old.manifest, quick=True))

    threads = [threading.Thread(target=adds, args=(names[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bundle = open_bundle(place)
    assert set(names) <= set(bundle.manifest.files)
    bundle.verified(bundle.manifest.files)
    assert [path.name for path in folder.iterdir()] == ["b"]
    return Counter({"kept": times})


def loads(times: int, folder: Path, chance: random.Random) -> Outcomes:
    """Sessions opened while a process replaces the bundle by another one, and back: each answers as
    one of the two."""
    inputs = smallest_inputs(open_bundle(OLD_BUNDLE))
    assert inputs is not None
    other = Path(shutil.copytree(OLD_BUNDLE, folder / "other"))
    weights = np.frombuffer((other / "weights.bin").read_bytes(), np.float32) * np.float32(0.5)
    with_file(other, "weights.bin", weights.tobytes())
    known = {name: answer_of(path, inputs) for name, path in (("a", OLD_BUNDLE), ("b", other))}
    assert known["a"] != known["b"]
    found: Outcomes = Counter()
    with replaced_in_turn((OLD_BUNDLE, other), folder / "place"):
        for _ in range(times):
            answer = answer_of(folder / "place", inputs)
            (name,) = [name for name, one in known.items() if one == answer]
            found[name] += 1
    return found


def answer_of(path: Path, inputs: dict[str, np.ndarray]) -> bytes:
    options = runtime.SessionOptions(threads=1)
    with runtime.load(path, "ort-cpu", options) as session:
        return b"".join(array.tobytes() for array in session.run(inputs).values())


@contextmanager
def replaced_in_turn(sources: tuple[Path, ...], place: Path) -> Iterator[None]:
    stop = threading.Event()
    copied(sources[0], place)

    def replaces() -> None:
        while not stop.is_set():
            for source in sources:
                copied(source, place)

    thread = threading.Thread(target=replaces)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


CAMPAIGNS = (manifests, archives, graphs, kills, changes, loads)


def run(
    campaign: Callable[[int, Path, random.Random], Outcomes], times: int, seed: int
) -> Outcomes:
    """One campaign in a folder of its own, beside which nothing comes to be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "inside"
        folder.mkdir()
        found = campaign(times, folder, random.Random(seed))
        assert [path.name for path in Path(name).iterdir()] == ["inside"]
    return found


def main() -> None:
    """Print a line for each campaign."""
    times = int(sys.argv[1])
    for campaign in CAMPAIGNS:
        start = time.perf_counter()
        found = run(campaign, times, 0)
        seconds = time.perf_counter() - start
        sys.stdout.write(f"{campaign.__name__}: {dict(found)} in {seconds:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
