"""From a bundle's folder to a `RequestEngine`: loaded, tried for merging, warm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.staging import unreplaced
from crossfuse.bundle.store import Bundle
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.parity.session_check import smallest_inputs
from crossfuse.parity.trial import require_tried
from crossfuse.runtime.backends import best_target, target_of_bundle
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.processing import Processor, load_processor
from crossfuse.runtime.session import Session
from crossfuse.runtime.signed import Signed
from crossfuse.serve.limits import Limits
from crossfuse.serve.merging import Merging
from crossfuse.serve.metrics import Meter
from crossfuse.serve.request_engine import Request, RequestEngine

__all__ = [
    "Boundary",
    "EngineOptions",
    "boundary",
    "largest_batch",
    "open_engine",
    "open_generation",
    "ready_target",
]


@dataclass(frozen=True)
class EngineOptions:
    """How a server opens a bundle.

    Args:
        target: of the bundle; where omitted, the best that runs here.
        threads: inside one operator.
        cache_mb: megabytes (10⁶) of kept contexts; 0 for none.
        merge: whether queries of different requests may share a call.
        max_rows: queries in one call.
        device: which GPU, for targets that need one.
        trust_engines: as of `SessionOptions`.
        public_key: file of a key in PEM: only what its owner signed is opened, its engines too.
        signature: file of the signature; beside the bundle's folder where omitted.
    """

    target: str | None = None
    threads: int | None = None
    cache_mb: int = 1000
    merge: bool = True
    max_rows: int = 64
    device: int = 0
    trust_engines: bool = True
    public_key: str | None = None
    signature: str | None = None

    @property
    def of_session(self) -> SessionOptions:
        """Those of its session."""
        return SessionOptions(
            threads=self.threads,
            spin=False,
            device_id=self.device,
            trust_engines=self.trust_engines or self.public_key is not None,
        )

    def signed(self, path: str | Path | Bundle) -> Signed:
        """What signature a bundle has to have."""
        return Signed.of(path, self.public_key, self.signature)

    def __post_init__(self) -> None:
        if self.cache_mb < 0 or self.max_rows < 1:
            raise InputError(
                "an option of the server is out of range",
                got=f"cache {self.cache_mb} MB, {self.max_rows} rows",
            )


def ready_target(bundle: Bundle, options: EngineOptions) -> str:
    """The target that a server of the bundle opens: what can't be opened is refused here, before a
    server starts.

    Raises:
        BundleError: the bundle isn't signed as it has to be, lacks the target, is damaged, or fails
            its trial.
    """
    options.signed(bundle).require(bundle)
    name = options.target or best_target(bundle.targets)
    entry = bundle.target(name)
    target_of_bundle(name, entry.package)
    bundle.verified(sorted({*entry.files, *entry.stages.values()}))
    require_tried(bundle, name, options.of_session)
    return name


def open_engine(
    path: str | Path | Bundle,
    options: EngineOptions,
    *,
    limits: Limits | None = None,
    meter: Meter | None = None,
    trial: bool = True,
) -> RequestEngine:
    """Load a bundle, try on its reference inputs whether queries may be merged, and so warm it up.

    Args:
        path: the bundle, or where it is.
        options: how it is opened.
        limits: of a request.
        meter: told what is done.
        trial: a bundle that was not written here is tried in a process of its own first.

    Raises:
        BundleError: as :func:`crossfuse.runtime.load`; or it isn't signed as it has to be.
        CrossfuseError: the bundle doesn't answer its own reference inputs.
    """

    signed = options.signed(path)

    def opened(bundle: Bundle) -> RequestEngine:
        signed.require(bundle)
        if trial:
            require_tried(bundle, options.target, options.of_session)
        return _opened(bundle, options, limits, meter)

    return unreplaced(path, opened)


def open_generation(path: str | Path, options: EngineOptions) -> tuple[Session, Processor]:
    """Load what a bundle generates with, and its processor.

    Raises:
        BundleError: as :func:`crossfuse.runtime.load`; or it isn't signed as it has to be.
    """
    signed = options.signed(path)

    def opened(bundle: Bundle) -> tuple[Session, Processor]:
        signed.require(bundle)
        require_tried(bundle, options.target, options.of_session)
        stages = ["context", "step"]
        session = load(bundle, options.target, options.of_session, stages=stages)
        return session, load_processor(bundle)

    return unreplaced(path, opened)


def _opened(
    bundle: Bundle, options: EngineOptions, limits: Limits | None, meter: Meter | None
) -> RequestEngine:
    session = load(bundle, options.target, options.of_session)
    engine = RequestEngine(
        session,
        cache_bytes=options.cache_mb * 1_000_000,
        limits=limits,
        merge=options.merge,
        max_rows=min(options.max_rows, largest_batch(bundle.manifest, options.max_rows)),
        meter=meter,
    )
    inputs = smallest_inputs(bundle)
    if inputs is not None:
        engine.prove_merging(inputs)
        (answer,) = engine.answer([Request(inputs)])
        if isinstance(answer, CrossfuseError):
            raise answer.__cause__ if isinstance(answer.__cause__, CrossfuseError) else answer
        if engine.cache is not None:
            engine.cache.clear()
    elif engine.merges:
        engine.merges = False
    return engine


def largest_batch(manifest: Manifest, otherwise: int) -> int:
    """The largest size of the dimension that queries are merged along."""
    _, queries, outputs = boundary(manifest)
    first = Merging(queries, outputs).dim
    dim = manifest.dims.get(first) if first is not None else None
    return otherwise if dim is None or dim.max is None else dim.max


class Boundary(NamedTuple):
    """What a server takes and gives: context inputs (none in an unsplit bundle), the other inputs,
    and outputs."""

    context: tuple[TensorSpec, ...]
    queries: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def boundary(manifest: Manifest) -> Boundary:
    """The boundary of a bundle as its servers show it."""
    stages = manifest.stages
    if "context" not in stages:
        return Boundary((), stages["model"].inputs, stages["model"].outputs)
    frontier = {spec.name for spec in stages["context"].outputs}
    queries = tuple(spec for spec in stages["query"].inputs if spec.name not in frontier)
    return Boundary(stages["context"].inputs, queries, stages["query"].outputs)
