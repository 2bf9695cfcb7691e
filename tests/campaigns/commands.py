"""Each command as campaigns run it: what it is given, what it writes, and whether that is whole."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.limits import content
from campaigns.operations import OLD_BUNDLE, copied
from crossfuse import runtime
from crossfuse.bundle.store import open_bundle
from crossfuse.parity.session_check import smallest_inputs
from signing_keys import keys
from unit.runtime.speech.toy_speech import GENERATION, sound, speech_processor, speech_session

QUICK = ("--rounds", "3", "--seconds", "0.001")
SHARDS = 4


@dataclass(frozen=True)
class Command:
    """A command that is run in a folder of its own.

    Attributes:
        words: of the command line, in that folder.
        starts: makes what has to be there.
        require_whole: raises where what is there is neither the old nor the new one.
        writes: names in the folder that may come to be.
        prepares: is called in the process before the command.
        progresses: a failed one may have done a part, which the next run goes on with.
    """

    words: Callable[[Path], list[str]]
    starts: Callable[[Path], object]
    require_whole: Callable[[Path], object]
    writes: frozenset[str]
    prepares: Callable[[], object] = int
    progresses: bool = False


def bundle_there(place: Path) -> None:
    copied(OLD_BUNDLE, place / "b")
    (place / "b" / "notes.md").write_text("mine")


def require_bundle(place: Path) -> None:
    content(place / "b")
    assert (place / "b" / "notes.md").read_text() == "mine"


def _inputs(place: Path) -> None:
    bundle_there(place)
    found = smallest_inputs(open_bundle(OLD_BUNDLE))
    assert found is not None
    (place / "in").mkdir()
    for number in range(SHARDS):
        np.savez(place / "in" / f"{number}.npz", **found)


def _require_answers(folder: Path) -> None:
    for path in folder.glob("[!.]*.npz"):
        found = dict(np.load(path))
        assert all(np.isfinite(array).all() for array in found.values())


def _require_model(place: Path) -> None:
    root = place / "models"
    if (root / "m").exists():
        content(root / "m" / "1" / "bundle")
        assert (root / "m" / "config.pbtxt").read_text().startswith("# Written by crossfuse")
    if root.exists():
        assert {one.name for one in root.iterdir()} <= {"m", "README.md"}


def _require_report(place: Path) -> None:
    require_bundle(place)
    if (place / "r.json").exists():
        json.loads((place / "r.json").read_text())
    if (place / "r.html").exists():
        assert (place / "r.html").read_text().rstrip().endswith("</html>")


def _signed(place: Path) -> None:
    bundle_there(place)
    keys(place)


def _require_signature(place: Path) -> None:
    require_bundle(place)
    if (place / "b.sig").exists():
        json.loads((place / "b.sig").read_text())


def _without_ray() -> None:
    from campaigns.killed_maps import without_ray

    without_ray()


def _openvino(place: Path) -> None:
    """A bundle for OpenVINO, built in a process of its own: its threads would not be in forks."""
    _inputs(place)
    shutil.rmtree(place / "b")
    copied(_for_openvino(), place / "b")
    (place / "b" / "notes.md").write_text("mine")


@functools.cache
def _for_openvino() -> Path:
    made = Path(tempfile.mkdtemp()) / "b"
    atexit.register(shutil.rmtree, made.parent, ignore_errors=True)
    copied(OLD_BUNDLE, made)
    words = [sys.executable, "-m", "crossfuse", "build", str(made), "--target", "openvino"]
    subprocess.run(words, check=True, capture_output=True)
    return made


def _sound(place: Path) -> None:
    bundle_there(place)
    np.save(place / "a.npy", sound(0.7))


def _hearing() -> None:
    """From here on the bundle is opened, and what answers is a model of a few lines."""
    real = runtime.load

    def opened(bundle: Path, target: str | None, options: Any, **_: Any) -> Any:
        real(bundle, target, options).close()
        return speech_session(GENERATION, scores=True)

    runtime.load = opened
    runtime.load_processor = lambda _: speech_processor()


MODEL = ("cross_modal_attention", "--size", "tiny", "--quick")
HAVE = frozenset({"b"})
COMMANDS: Mapping[str, Command] = {
    "export": Command(
        lambda at: ["export", *MODEL, "-o", str(at / "b"), "--target", "onnx"],
        bundle_there,
        require_bundle,
        HAVE,
    ),
    "build": Command(
        lambda at: ["build", str(at / "b"), "--target", "onnx"], bundle_there, require_bundle, HAVE
    ),
    "verify": Command(
        lambda at: ["verify", str(at / "b"), "--json"], bundle_there, require_bundle, HAVE
    ),
    "package": Command(
        lambda at: ["package", str(at / "b"), "-o", str(at / "models"), "--name", "m"],
        bundle_there,
        _require_model,
        HAVE | {"models"},
    ),
    "map": Command(
        lambda at: [
            "map", str(at / "b"), "--input", str(at / "in"), "-o", str(at / "out"), "--shard-rows",
            "1", "--target", "ort-cpu",
        ],
        _inputs,
        lambda at: _require_answers(at / "out"),
        HAVE | {"in", "out"},
        _without_ray,
        progresses=True,
    ),
    "profile": Command(
        lambda at: [
            "profile", str(at / "b"), *QUICK, "--cold-starts", "1", "-o", str(at / "r.json"),
            "--html", str(at / "r.html"),
        ],
        bundle_there,
        _require_report,
        HAVE | {"r.json", "r.html"},
        progresses=True,
    ),
    "tune": Command(lambda at: ["tune", str(at / "b"), *QUICK], bundle_there, require_bundle, HAVE),
    "run": Command(
        lambda at: [
            "run", str(at / "b"), "--input", str(at / "in" / "0.npz"), "--output",
            str(at / "o.npz"),
        ],
        _inputs,
        _require_answers,
        HAVE | {"in", "o.npz"},
    ),
    "openvino": Command(
        lambda at: [
            "run", str(at / "b"), "--target", "openvino", "--input", str(at / "in" / "0.npz"),
            "--output", str(at / "o.npz"),
        ],
        _openvino,
        _require_answers,
        HAVE | {"in", "o.npz"},
    ),
    "generate": Command(
        lambda at: ["generate", str(at / "b"), "--audio", str(at / "a.npy")],
        _sound,
        require_bundle,
        HAVE | {"a.npy"},
        _hearing,
    ),
    "sign": Command(
        lambda at: ["sign", str(at / "b"), "--key", str(at / "key.pem")],
        _signed,
        _require_signature,
        HAVE | {"key.pem", "key.pub", "b.sig"},
    ),
}  # fmt: skip
