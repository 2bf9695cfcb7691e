"""A load while others replace the bundle answers with one of them; links are read as what they
lead to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import crossfuse
from crossfuse import BundleError, runtime
from crossfuse.bundle.manifest import MANIFEST, Manifest
from crossfuse.bundle.staging import plain_files, staged, unreplaced
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.bundle.writer import write_bundle
from crossfuse.parity.session_check import reference_of

MANIFEST_OF_ALL = Manifest.loads(
    (Path(__file__).parent / "manifests" / "every_field.json").read_text(encoding="utf-8"), "m"
)
NAMES = ("fused.onnx", "weights.bin", "model.onnx")


def written(path: Path, content: str) -> None:
    with write_bundle(path) as writer:
        for name in NAMES:
            writer.file(name).write_text(content)
        writer.commit(MANIFEST_OF_ALL)


def read_by_path(bundle: Bundle) -> set[str]:
    """Hashed, and opened by path afterwards, as engines do."""
    read = {path.read_text() for path in bundle.verified(NAMES)}
    bundle.require_unreplaced()
    return read


@contextmanager
def replaced_in_turn(path: Path, contents: tuple[str, ...]) -> Iterator[None]:
    stop = threading.Event()

    def replaces() -> None:
        turn = 0
        while not stop.is_set():
            written(path, contents[turn % len(contents)])
            turn += 1

    thread = threading.Thread(target=replaces)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("exchange", [True, False])
def test_reads_during_replacements_are_of_one_bundle(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("crossfuse.core.files._rename", lambda *_: False)
    path = tmp_path / "b"
    contents = ("a" * 5000, "b" * 5000)
    written(path, contents[0])
    with replaced_in_turn(path, contents):
        for _ in range(60):
            (read,) = unreplaced(path, read_by_path)
            assert read in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_an_open_bundle_that_was_replaced_is_told(tmp_path: Path) -> None:
    written(tmp_path / "b", "first")
    bundle = open_bundle(tmp_path / "b")
    assert not bundle.replaced
    written(tmp_path / "b", "first")
    assert bundle.replaced
    with pytest.raises(BundleError, match="was replaced while it was read"):
        unreplaced(bundle, read_by_path)
    assert unreplaced(tmp_path / "b", read_by_path) == {"first"}


def as_snapshot(bundle: Path, cache: Path) -> None:
    """As hubs and caches have a folder: every file a link to one elsewhere, named by its hash."""
    cache.mkdir()
    for number, file in enumerate(sorted(bundle.iterdir())):
        blob = cache / f"blob-{number}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, bundle))


def inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return dict(
        a=generator.standard_normal((1, 2, 32)).astype("f4"),
        b=generator.standard_normal((1, 3, 24)).astype("f4"),
        b_mask=np.ones((1, 3), "i8"),
    )


def test_links_load_where_hashes_fit(bundle_copy: Path, tmp_path: Path) -> None:
    expected = runtime.load(bundle_copy, "ort-cpu").run(**inputs())["fused"]
    count = len(list(bundle_copy.iterdir()))
    as_snapshot(bundle_copy, tmp_path / "cache")
    assert (bundle_copy / "weights.bin").is_symlink()
    np.testing.assert_array_equal(
        runtime.load(bundle_copy, "ort-cpu").run(**inputs())["fused"], expected
    )
    assert crossfuse.verify(bundle_copy, "ort-cpu").passed
    assert crossfuse.build(bundle_copy, "ort-cpu").verified(["weights.bin"])
    assert not any(path.is_symlink() for path in bundle_copy.iterdir())
    assert len(list((tmp_path / "cache").iterdir())) == count, "what links led to is its owner's"
    np.testing.assert_array_equal(
        runtime.load(bundle_copy, "ort-cpu").run(**inputs())["fused"], expected
    )


def test_what_a_link_leads_to_counts(bundle_copy: Path, tmp_path: Path) -> None:
    as_snapshot(bundle_copy, tmp_path / "cache")
    with (bundle_copy / "weights.bin").open("r+b") as file:
        file.write(b"\0\1\2")
    with pytest.raises(BundleError, match="was changed"):
        runtime.load(bundle_copy, "ort-cpu")


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.symlink_to(path.parent),
    "nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", ["weights.bin", MANIFEST])
@pytest.mark.parametrize("kind", list(SPECIAL))
def test_special_files_are_refused_and_not_waited_for(
    bundle_copy: Path, kind: str, name: str
) -> None:
    (bundle_copy / name).unlink()
    SPECIAL[kind](bundle_copy / name)
    with pytest.raises(BundleError, match=r"missing|no bundle|can't be read"):
        runtime.load(bundle_copy, "ort-cpu")


@pytest.mark.parametrize("copied", [True, False])
def test_staged_files_are_plain(bundle_copy: Path, tmp_path: Path, copied: bool) -> None:
    as_snapshot(bundle_copy, tmp_path / "cache")
    with staged(open_bundle(bundle_copy), copied) as bundle:
        paths = bundle.verified(bundle.manifest.files)
        assert not any(path.is_symlink() for path in paths)
        if copied:
            assert {path.stat().st_nlink for path in paths} == {1}
        (bundle.path / "weights.bin").unlink()
    assert not bundle.path.exists()
    assert crossfuse.open_bundle(bundle_copy).verified(["weights.bin"])


def test_plain_bundles_are_read_where_they_are(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    with plain_files(bundle) as plain:
        assert plain is bundle
    shutil.rmtree(bundle_copy)


@pytest.mark.slow
def test_loads_during_replacements_answer_with_one_bundle(tmp_path: Path) -> None:
    """By the real engine, beside a process that replaces the bundle."""
    for seed in (0, 1):
        crossfuse.export("cross_modal_attention", tmp_path / str(seed), size="tiny", seed=seed)
    path = tmp_path / "b"
    shutil.copytree(tmp_path / "0", path)
    known = [runtime.load(tmp_path / str(seed)).run(**inputs())["fused"] for seed in (0, 1)]
    with subprocess.Popen([sys.executable, "-c", REPLACES, str(tmp_path)]) as process:
        for _ in range(100):
            answer = runtime.load(path).run(**inputs())["fused"]
            assert any(np.array_equal(answer, one) for one in known)
        process.kill()


REPLACES = """
import sys
from pathlib import Path
from crossfuse.bundle.store import open_bundle
from crossfuse.bundle.writer import write_bundle
root = Path(sys.argv[1])
while True:
    for seed in "01":
        bundle = open_bundle(root / seed)
        with write_bundle(root / "b") as writer:
            names = list(bundle.manifest.files)
            writer.adopt(bundle, names, copied=names)
            writer.commit(bundle.manifest)
"""


def test_a_bundle_of_links_is_the_same_after_it_was_loaded(
    bundle_copy: Path, tmp_path: Path
) -> None:
    """Engines get hard links to its files, the manifest's among them: that is no replacement."""
    as_snapshot(bundle_copy, tmp_path / "cache")
    bundle = open_bundle(bundle_copy)
    for _ in range(2):
        with runtime.load(bundle, "ort-cpu") as session:
            session.run(**inputs())
        assert not bundle.replaced
        assert reference_of(bundle).points
    other = open_bundle(bundle_copy)
    runtime.load(bundle_copy, "ort-cpu").close()
    assert not other.replaced, "another process's load is none, either"
