"""Damaged bundles, opened and asked as strangers' are: in forked children, whose end is seen.

A bundle is refused in one paragraph, or fails its parity, or answers as it did before the damage;
nothing beside it is read or written. A child that ends otherwise has to be what `crossfuse verify`
says in one paragraph, because that tries strangers' bundles in a process of its own.

``CROSSFUSE_CAMPAIGN_BUNDLES`` names a folder of further bundles to damage.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.damage import DAMAGES, WHOLE, Chance, fresh_copy
from campaigns.forks import ended
from campaigns.operations import OLD_BUNDLE, Outcomes, damaged
from crossfuse import CrossfuseError, runtime
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import InternalError
from crossfuse.parity.session_check import reference_of, verify_session
from crossfuse.parity.trial import TrialLimits, require_tried
from crossfuse.runtime.processing.processor import load_processor

Arrays = dict[str, np.ndarray]
USED = ("decimal", "filelock", "PIL.Image", "tokenizers")
"""What children would import each anew."""
SECONDS = 8
"""Of a processor, after which a child hangs."""
LONGEST = 120.0
"""Seconds after which one hangs that waits."""
MEMORY = 4 << 30
ONE = runtime.SessionOptions(threads=1)
STRICT = runtime.SessionOptions(threads=1, trust_engines=False)
LOUDEST = 1e-3
"""Relative difference of answers beyond which they are others than before the damage."""


@dataclass(frozen=True)
class Base:
    """A bundle to damage, and what it says undamaged.

    Attributes:
        path: of it.
        target: of it.
        inputs: fresh ones, which its reference does not hold.
        expected: answers to them.
        context: a file of contexts, where it has some.
    """

    path: Path
    target: str
    inputs: list[Arrays]
    expected: list[Arrays]
    context: bytes | None

    @classmethod
    def of(cls, path: Path, target: str, folder: Path) -> Base:
        """Ask the bundle."""
        rng, fresh, context = np.random.default_rng(7), [], None
        for point in reference_of(open_bundle(path)).points[:2]:
            made = {name: other_of(array, rng) for name, array in point.inputs.items()}
            fresh.append(made)
        with runtime.load(path, target, ONE) as session:
            expected = [session.run(inputs) for inputs in fresh]
            if "context" in session.stages:
                given = {s.name: fresh[0][s.name] for s in session.stages["context"].inputs}
                session.encode(given).save(folder / "context.safetensors")
                context = (folder / "context.safetensors").read_bytes()
        return cls(path, target, fresh, expected, context)


def other_of(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    return rng.standard_normal(array.shape).astype(array.dtype)


def bases(folder: Path) -> list[Base]:
    """Bundles to damage, each target of each that runs here."""
    extra = os.environ.get("CROSSFUSE_CAMPAIGN_BUNDLES")
    paths = [OLD_BUNDLE, *(sorted(Path(extra).iterdir()) if extra else [])]
    return [
        Base.of(path, target, folder)
        for path in paths
        for target in open_bundle(path).targets
        if target in ("ort-cpu", "openvino")
    ]


def opened(bundle: Path, base: Base, cache: Path) -> str:
    """In the child: what comes of verifying, of asking, and of its processor."""
    os.environ.update(CROSSFUSE_CACHE=str(cache), CROSSFUSE_TRUST_BUNDLES="0")
    found: list[Bundle] = []
    if refusal(lambda: found.append(open_bundle(bundle))) == "refused":
        return "refused"
    said: list[str] = []
    loaded = refusal(lambda: said.extend(asked(found[0], base)))
    if said == ["answered", "another answer"]:
        return "wrong"
    used = refusal(lambda: prepared(found[0]))
    refusal(lambda: open_engine(found[0], base.target))
    return "answered" if {loaded, used, *said} == {"answered"} else "refused"


def asked(bundle: Bundle, base: Base) -> tuple[str, str]:
    """What comes of the parity of a session, as `verify` has it, and of its answers."""
    with runtime.load(bundle, base.target, STRICT) as session:
        verdict = refusal(lambda: require_parity(session, bundle))
        return verdict, refusal(lambda: require_same(session, base))


def open_engine(bundle: Bundle, target: str) -> None:
    """Open what only those open who trust engines of strangers."""
    if bundle.target(target).engine is not None:
        runtime.load(bundle, target, ONE).close()


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except OtherAnswerError:
        return "another answer"
    except CrossfuseError as error:
        text, was_foreseen = str(error), not isinstance(error, InternalError)
    else:
        return "answered"
    assert was_foreseen, text
    assert len(text.splitlines()) == 1, f"not one paragraph: {text}"
    return "refused"


class OtherAnswerError(Exception):
    """The damaged bundle answers otherwise than the whole one."""


def require_parity(session: runtime.Session, bundle: Bundle) -> None:
    failure = verify_session(session, bundle).failure
    if failure is not None:
        raise failure


def require_same(session: runtime.Session, base: Base) -> None:
    for inputs, expected in zip(base.inputs, base.expected, strict=True):
        if not alike(session.run(inputs), expected):
            raise OtherAnswerError


def alike(got: Mapping[str, Any], expected: Arrays) -> bool:
    if set(got) != set(expected):
        return False
    for name, array in expected.items():
        other = np.asarray(got[name])
        if other.shape != array.shape:
            return False
        apart = np.abs(other.astype(np.float64) - array.astype(np.float64))
        if not np.all(apart <= LOUDEST * max(1.0, float(np.abs(array).max(initial=0)))):
            return False
    return True


def prepared(bundle: Bundle) -> None:
    """What the bundle's processor, if there is one, makes of texts, images and sounds."""
    processor = load_processor(bundle)
    rng = np.random.default_rng(0)
    if "tokenizer.json" in processor.files:
        ids, _ = processor.texts("a photo of the cat", "what?")
        processor.decode(ids[0])
    names = " ".join(processor.files)
    if "preprocessor" in names or "processor_config" in names:
        image = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
        sound = rng.standard_normal(1600).astype(np.float32)
        for work in (lambda: processor.images(image), lambda: processor.sounds(sound)):
            refusal(work)


def contexts(bundle: Path, base: Base, cache: Path) -> str:
    """In the child: a damaged file of contexts, put before the whole bundle."""
    del cache
    with runtime.load(base.path, base.target, ONE) as session:
        return refusal(lambda: session.load_context(bundle / "context.safetensors"))


def in_child(work: Callable[..., str], *arguments: Any) -> str:
    """What a function gives in a forked child with limits; or how the child ended."""
    reads, writes = os.pipe()
    process = os.fork()
    if not process:
        _be_child(reads, writes, work, arguments)
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        status, _ = ended(process, LONGEST)
        if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            return "hung"
        return stream.read().decode() or "ended"


def _be_child(reads: int, writes: int, work: Callable[..., str], arguments: Any) -> None:
    os.close(reads)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    try:
        said = work(*arguments)
    except BaseException:  # noqa: BLE001 -- it is told, and fails the campaign
        said = f"traceback: {traceback.format_exc()}"
    os.write(writes, said.encode()[:60_000])
    os._exit(0)


def canaries(folder: Path) -> tuple[Path, ...]:
    """Files beside the bundle that nobody reads or changes, of a size that no manifest has: their
    times of access are set back."""
    found = (folder / "canary.bin", folder.parent / "canary.bin")
    for path in found:
        path.write_bytes(bytes(100_003))
        os.utime(path, (1, 2))
    return found


def unread(beside: tuple[Path, ...]) -> None:
    """Forget that they were read: a manifest may be a link, as in the folders of hubs, and nothing
    tells its size before it is read."""
    for path in beside:
        os.utime(path, (1, path.stat().st_mtime))


def bundles(times: int, folder: Path, chance: Chance) -> Outcomes:
    """Bundles with a part damaged, hashes made to fit."""
    known = bases(folder)
    for name in USED:
        importlib.import_module(name)
    gc.freeze()
    (folder / "context.safetensors").unlink(missing_ok=True)
    beside = canaries(folder)
    found: Outcomes = Counter()
    faults: list[str] = []
    for _ in range(times):
        base = chance.choice(known)
        bundle = fresh_copy(base.path, folder / "b")
        if base.context is not None and chance.random() < 0.08:
            (bundle / "context.safetensors").write_bytes(damaged(base.context, chance))
            how, work = "context", contexts
        else:
            damage = chance.choice(DAMAGES)
            how, work = damage(bundle, base.target, chance), opened
        said = in_child(work, bundle, base, folder / "cache")
        if said in ("ended", "hung") and told(bundle, base, folder):
            said = f"{said}, verify says so"
        where = f"{how}; {base.path.name}, {base.target}"
        if how == WHOLE and said != "answered":
            faults.append(f"{where}: {said}, although its content fits")
        if (bundle / "manifest.json").is_symlink():
            unread(beside)
        faults += [f"{where}: {fault}" for fault in faults_of(said, folder, beside)]
        if said not in ("answered", "refused"):
            keep_if_asked(bundle, f"{where}: {said}")
        found[said] += 1
    assert not faults, "\n".join([f"{len(faults)} faults in {times}: {found}", *faults])
    for path in beside:
        assert path.stat().st_mtime == 2
        path.unlink()
    shutil.rmtree(folder / "b")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "linked").unlink(missing_ok=True)
    return found


def faults_of(said: str, folder: Path, beside: tuple[Path, ...]) -> list[str]:
    """What is wrong with an outcome, and with what lies beside the bundle."""
    faults = [] if said in ALLOWED else [said]
    for path in beside:
        if path.stat().st_atime != 1:
            faults.append(f"{path.name} was read")
            os.utime(path, (1, 2))
    left = {path.name for path in folder.iterdir()} - {"b", "cache", "canary.bin", "linked"}
    return faults + ([f"{left} came to be"] if left else [])


ALLOWED = ("answered", "refused", "ended, verify says so", "hung, verify says so")


def told(bundle: Path, base: Base, folder: Path) -> bool:
    """The trial in a process of its own says in one paragraph what the bundle does."""
    before = dict(os.environ)
    os.environ.update(CROSSFUSE_CACHE=str(folder / "cache"), CROSSFUSE_TRUST_BUNDLES="0")
    limits = TrialLimits(seconds=SECONDS, memory=MEMORY)
    try:
        require_tried(open_bundle(bundle), base.target, STRICT, limits)
    except CrossfuseError as error:
        return len(str(error).splitlines()) == 1
    finally:
        os.environ.clear()
        os.environ.update(before)
    return False


def keep_if_asked(bundle: Path, how: str) -> None:
    """Keep a bundle that did something in ``CROSSFUSE_CAMPAIGN_KEEPS``, if that names a folder."""
    place = os.environ.get("CROSSFUSE_CAMPAIGN_KEEPS")
    if place is not None:
        found = Path(place) / f"{time.time_ns()}"
        found.mkdir()
        (found / "how.txt").write_text(how)
        for path in bundle.iterdir():
            if path.is_file() and not path.is_symlink():
                shutil.copy(path, found)


CAMPAIGNS = (bundles,)
