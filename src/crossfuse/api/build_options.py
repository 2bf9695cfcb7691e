"""How a target is built: the options, checked before any work, and what a finished build depended
on."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from crossfuse import __version__
from crossfuse.api.calibration import calibration_files
from crossfuse.api.fused_graph import WEIGHTS
from crossfuse.core.files import sha256_of
from crossfuse.core.json_codec import json_text
from crossfuse.core.target import IO_DTYPES, LOW_PRECISIONS, require_precision, require_target
from crossfuse.errors import Advice, InputError, PackageError, Said
from crossfuse.runtime.gpu import Gpu

if TYPE_CHECKING:
    from crossfuse.bundle.manifest import Manifest

__all__ = ["BuildOptions", "check_low_precision", "check_options", "options_of", "request_key"]


@dataclass(frozen=True)
class BuildOptions:
    """How a target is built; see :func:`crossfuse.build`."""

    precision: str | None = None
    io_dtype: str | None = None
    allow_unfused: bool = False
    compute_capabilities: tuple[str, ...] = ()
    profile_shapes: tuple[str, ...] = ()
    memory_limit: int | None = None
    optimization_level: int | None = None
    lean: bool = False
    calibrate: tuple[str, ...] = ()
    metric: str | None = None
    max_drop: float | None = None
    allow_unquantized: bool = False


def check_options(target: str, options: BuildOptions) -> BuildOptions:
    """The options with the target's defaults, and compute capabilities in order.

    Raises:
        InputError: an option that the target doesn't have, or a library that isn't installed.
    """
    known = require_target(target)
    if options.io_dtype is not None and options.io_dtype not in IO_DTYPES:
        raise InputError(
            "inputs and outputs can't have this type",
            got=repr(options.io_dtype),
            expected=" or ".join(IO_DTYPES),
        )
    options = replace(options, precision=require_precision(options.precision, known))
    if options.io_dtype == "fp16" and options.precision not in ("fp16", "mixed"):
        raise InputError(
            "inputs and outputs in fp16 need a target in fp16 or mixed", got=options.precision
        )
    check_low_precision(options)
    if known.compiles and (missing := known.missing()) is not None:
        raise PackageError(
            f"target {target!r} is built with {missing}, which is not installed: the ledger says "
            "what it makes of each attention",
            do=None if known.install is None else f"Install it: {known.install}",
        )
    if known.engine is None:
        return options
    from crossfuse.targets.tensorrt.libraries import (
        check_capabilities,
        check_fp8,
        require_library,
    )
    from crossfuse.targets.tensorrt.shape_profiles import parse_profile

    for text in options.profile_shapes:
        parse_profile(text)
    capabilities = check_capabilities(known, options.compute_capabilities)
    require_library(known)
    if options.lean and known.engine.lean_module is None:
        raise InputError(
            f"{known.provider} has no lean runtime",
            do=Advice("Leave {} out", Said("--lean", "lean")),
        )
    if known.builds_for_this_gpu:
        capabilities = (Gpu().capability,)
    if options.precision == "fp8":
        check_fp8(known, capabilities)
    return replace(options, compute_capabilities=capabilities)


def check_low_precision(options: BuildOptions) -> None:
    """Refuse what only a low precision takes in another one, and half of a metric.

    Raises:
        InputError: such an option, or calibration data that isn't there.
    """
    given = {
        Said("--calibrate", "calibrate"): bool(options.calibrate),
        Said("--metric", "metric"): options.metric is not None,
        Said("--max-drop", "max_drop"): options.max_drop is not None,
        Said("--allow-unquantized", "allow_unquantized"): options.allow_unquantized,
    }
    if options.precision not in LOW_PRECISIONS:
        for said, present in given.items():
            if present:
                raise InputError(
                    Advice("{} is for low precisions", said),
                    got=options.precision,
                    expected=", ".join(LOW_PRECISIONS),
                )
        return
    if (options.metric is None) != (options.max_drop is None):
        raise InputError(
            Advice(
                "a metric ({}) and how far it may drop ({}) go together",
                Said("--metric", "metric"),
                Said("--max-drop", "max_drop"),
            )
        )
    if options.max_drop is not None and not 0 <= options.max_drop < math.inf:
        raise InputError(
            "a metric can't drop by that", got=options.max_drop, expected="a number from 0 on"
        )
    calibration_files(options.calibrate)


def options_of(target: str, options: BuildOptions) -> BuildOptions:
    """Options of an export that builds several targets: GPUs and shapes are for those that have
    engines.

    Raises:
        InputError: there is no such target.
    """
    known = require_target(target)
    if known.engine is not None and not known.builds_for_this_gpu:
        return options
    return replace(options, compute_capabilities=())


def request_key(manifest: Manifest, target: str, options: BuildOptions) -> str:
    """A digest of all that a target's build depends on: the bundle's graph, weights and reference,
    options, the files that these name, versions."""
    from crossfuse.targets.tensorrt.libraries import library_version

    known = require_target(target)
    given = (manifest.fused_graph, WEIGHTS, manifest.reference)
    inputs = {name: entry.sha256 for name, entry in manifest.files.items() if name in given}
    about = {
        "files": inputs,
        "target": target,
        "options": asdict(options),
        "calibration": [sha256_of(file) for file in calibration_files(options.calibrate)],
        "library": None if known.engine is None else library_version(known),
        "crossfuse": __version__,
    }
    return hashlib.sha256(json_text(about, sort_keys=True).encode()).hexdigest()
