"""Damage to a bundle that knows its parts: graphs, manifests, weights, arrays, settings, engines,
and what lies where a file should be. Sizes and hashes are made to fit, as an attacker would."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.damaged_graphs import FLOATS, INTEGERS, Chance, damaged_graph
from campaigns.operations import STRANGE, damaged, mutated, with_file

WHOLE = "places (a link to the file)"
"""What is no damage: a link to a file of the right content."""


def names_in(bundle: Path) -> list[str]:
    return sorted(path.name for path in bundle.iterdir())


def a_graph(bundle: Path, target: str, chance: Chance) -> str:
    """A graph of a target, damaged in one to three ways."""
    about = json.loads((bundle / "manifest.json").read_text())
    name = chance.choice(list(about["targets"][target]["stages"].values()))
    data = (bundle / name).read_bytes()
    if chance.random() < 0.15:
        with_file(bundle, name, damaged(data, chance))
        return f"bytes of {name}"
    changed, ways = damaged_graph(data, chance)
    with_file(bundle, name, changed)
    return f"{ways} of {name}"


def weights(bundle: Path, target: str, chance: Chance) -> str:
    """Weights: bits, numbers that are none, other lengths."""
    names = [name for name in names_in(bundle) if name.endswith(".bin")]
    name = chance.choice(names)
    data = bytearray((bundle / name).read_bytes())
    how = chance.randrange(4)
    if how == 0:
        del data[chance.randrange(len(data)) :]
    elif how == 1:
        data += bytes(chance.randint(1, 5000))
    elif how == 2:
        at = 4 * chance.randrange(max(1, len(data) // 4 - 64))
        values = np.full(64, chance.choice((*FLOATS, 1e4)), np.float32).tobytes()
        data[at : at + len(values)] = values
    else:
        data[:] = damaged(bytes(data), chance)
    with_file(bundle, name, bytes(data))
    return f"weights ({how})"


def reference(bundle: Path, target: str, chance: Chance) -> str:
    """Reference arrays: values, shapes, types, names, and the file itself."""
    name = json.loads((bundle / "manifest.json").read_text())["reference"]
    data = (bundle / name).read_bytes()
    if chance.random() < 0.4:
        with_file(bundle, name, damaged(data, chance))
        return "bytes of the reference"
    arrays = dict(np.load(io.BytesIO(data)))
    key = chance.choice(list(arrays))
    array = arrays[key]
    how = chance.randrange(6)
    if how == 0:
        arrays[key] = array.reshape(-1)
    elif how == 1:
        kinds = ("f2", "f8", "i1", "u8", "?", "c8", "U3", "M8[s]")
        arrays[key] = array.astype(chance.choice(kinds))
    elif how == 2:
        del arrays[key]
    elif how == 3:
        arrays[chance.choice(("x", "", "a/b", key + "2"))] = arrays.pop(key)
    elif how == 4 and array.size and array.dtype.kind == "f":
        arrays[key] = array.copy()
        arrays[key].flat[chance.randrange(array.size)] = chance.choice(FLOATS)
    else:
        arrays[key] = np.repeat(array.reshape(array.shape or (1,)), chance.choice((0, 2, 7)), 0)
    held = io.BytesIO()
    np.savez(held, **arrays)
    with_file(bundle, name, held.getvalue())
    return f"reference ({how})"


def manifest(bundle: Path, target: str, chance: Chance) -> str:
    """A value of the manifest, at any depth; or two parts of it that change places."""
    file = bundle / "manifest.json"
    text = file.read_bytes()
    if chance.random() < 0.6:
        file.write_bytes(mutated(text, chance))
        return "manifest"
    about = json.loads(text)
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [about]
    while waiting:
        at = waiting.pop()
        for key, value in at.items() if isinstance(at, dict) else enumerate(at):
            places.append((at, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    (a, i), (b, j) = chance.choice(places), chance.choice(places)
    value = json.loads(json.dumps(b[j]))
    a[i] = value if chance.random() < 0.7 else chance.choice((*STRANGE, *INTEGERS))
    file.write_bytes(json.dumps(about).encode())
    return "manifest, parts moved"


def settings(bundle: Path, target: str, chance: Chance) -> str:
    """A tokenizer's or processor's file; the manifest's, where there is none."""
    names = [n for n in names_in(bundle) if n.endswith(".json") and n != "manifest.json"]
    if not names:
        return manifest(bundle, target, chance)
    name = chance.choice(names)
    data = (bundle / name).read_bytes()
    if chance.random() < 0.75:
        changed = data
        for _ in range(chance.randint(1, 3)):
            changed = mutated(changed, chance)
    else:
        changed = damaged(data, chance)
    with_file(bundle, name, changed)
    return f"settings ({name})"


def engines(bundle: Path, target: str, chance: Chance) -> str:
    """A target that says it is a stranger's engines, whose description may be anything."""
    file = bundle / "manifest.json"
    about = json.loads(file.read_text())
    entry = about["targets"][target]
    entry["engine"] = {
        "library": chance.choice(("tensorrt_rtx", "tensorrt", "os", "../x", "")),
        "version": chance.choice(("1.7", "10.13", "", "1" * 50)),
        "compute_capabilities": ["8.9"],
        "profiles": [{name: [1, 2, 4] for name in about["dims"]}],
        "lean": chance.random() < 0.5,
        "request": chance.choice(("", "0" * 64, "../../canary", "zz")),
    }
    if chance.random() < 0.5:
        key = chance.choice(list(entry["engine"]))
        entry["engine"][key] = chance.choice((*STRANGE, *INTEGERS))
    names = {stage: f"{stage}.engine" for stage in entry["stages"]}
    entry["stages"], entry["files"] = names, sorted(names.values())
    file.write_text(json.dumps(about))
    for name in names.values():
        head = chance.choice((b"ftrt", b"ptrt", b"", b"\x7fELF"))
        with_file(bundle, name, head + chance.randbytes(chance.randint(0, 5000)))
    return "engines"


def places(bundle: Path, target: str, chance: Chance) -> str:
    """Something else where a file should be: a link, a pipe, a folder, nothing."""
    name = chance.choice(names_in(bundle))
    path = bundle / name
    data = path.read_bytes()
    path.unlink()
    how = chance.randrange(8)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.mkdir()
    elif how < 5:
        aims = ("../canary.bin", "/dev/zero", "/etc/passwd", "/proc/self/fd/0", name, "/dev/stdin")
        path.symlink_to(chance.choice(aims))
    elif how == 5:
        beside = bundle.parent / "linked"
        beside.write_bytes(data)
        path.symlink_to(beside)
    elif how == 6:
        path.write_bytes(b"")
    return WHOLE if how == 5 else f"places ({how})"


DAMAGES = (
    a_graph, a_graph, a_graph, a_graph, weights, reference, manifest, settings, engines, places,
)  # fmt: skip


def fresh_copy(source: Path, place: Path) -> Path:
    """The bundle, whole, at the place, whatever was there."""
    shutil.rmtree(place, ignore_errors=True)
    place.parent.joinpath("linked").unlink(missing_ok=True)
    shutil.copytree(source, place)
    return place
