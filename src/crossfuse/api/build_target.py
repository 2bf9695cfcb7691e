"""One target of a bundle: precision, lowering, engine, proof of fusion, proof of parity. What
export and build share."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from crossfuse.bundle.manifest import EngineInfo, Manifest, TargetEntry
from crossfuse.core.json_codec import json_text
from crossfuse.errors import Advice, InputError, Said
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.shape_points import EXAMPLE, MADE, TAILS
from crossfuse.parity.target_check import ParityCheck
from crossfuse.runtime.backends import runs_here
from crossfuse.runtime.gpu import Gpu
from crossfuse.targets.registry import (
    IO_DTYPES,
    Target,
    lower_stages,
    require_precision,
    require_target,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from crossfuse.bundle.writer import BundleWriter
    from crossfuse.export.split.assembly import Stages
    from crossfuse.targets.precision.stages import Precise

__all__ = ["WEIGHTS", "BuildOptions", "add_target", "check_options", "request_key"]

WEIGHTS = "weights.bin"
"""The file of the fused graph's weights, which the targets' graphs share."""

_PRODUCERS = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "polygraphy",
)
_CALIBRATION_POINTS = 2
"""How many of the points made for the check are calibrated on, besides the user's examples and what
reaches tails."""

Step = Callable[[str], None]


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
    if not known.engine:
        return options
    from crossfuse.targets.tensorrt.libraries import check_capabilities, require_library
    from crossfuse.targets.tensorrt.shape_profiles import parse_profile

    for text in options.profile_shapes:
        parse_profile(text)
    capabilities = check_capabilities(target, options.compute_capabilities)
    require_library(target)
    if target == "tensorrt":
        capabilities = (Gpu().capability,)
    elif options.lean:
        raise InputError(
            "TensorRT-RTX has no lean runtime", do=Advice("Leave {} out", Said("--lean", "lean"))
        )
    return replace(options, compute_capabilities=capabilities)


def request_key(manifest: Manifest, target: str, options: BuildOptions) -> str:
    """A digest of all that a target's build depends on: the bundle's graph, weights and reference,
    options, versions."""
    from crossfuse.targets.tensorrt.libraries import LIBRARIES, library_version

    given = (manifest.fused_graph, WEIGHTS, manifest.reference)
    inputs = {name: entry.sha256 for name, entry in manifest.files.items() if name in given}
    about = {
        "files": inputs,
        "target": target,
        "options": asdict(options),
        "library": library_version(target) if target in LIBRARIES else None,
        "crossfuse": version("crossfuse"),
    }
    return hashlib.sha256(json_text(about, sort_keys=True).encode()).hexdigest()


def add_target(
    writer: BundleWriter,
    manifest: Manifest,
    model: ir.Model,
    stages: Stages,
    target: str,
    reference: ReferenceSet,
    options: BuildOptions,
    *,
    step: Step,
) -> Manifest:
    """Build a target into the bundle being written.

    Args:
        writer: of the bundle.
        manifest: so far.
        model: the whole fused graph.
        stages: what it is split into.
        target: its name.
        reference: the eager model's results.
        options: checked by `check_options`.
        step: told what begins.

    Returns:
        the manifest with the target's entry, and its column in the ledger.

    Raises:
        FusionError: an attention did not fuse.
        ParityError: the target does not compute what the eager model computes.
        EngineError: the engine builder refuses the graph.
    """
    known = require_target(target)
    precision = require_precision(options.precision, known)
    checker = ParityCheck(stages, reference, precision)
    precise = _in_precision(model, stages, known, options, checker, step)
    step(f"{target}: lowering")
    if known.engine:
        kernels, reasons, files, used, engine = _engines(
            writer, manifest, stages, precise, known, options, step
        )
    else:
        kernels, reasons, files, used = _graphs(writer, precise, known)
        engine = None
    ledger = manifest.ledger.with_target(target, kernels, reasons)
    if not options.allow_unfused:
        ledger.require_fused([target])
    step(f"{target}: parity")
    if runs_here(target) or (not known.engine and precision == "fp32"):
        report = checker.executed(
            target, {s: writer.folder / file for s, file in files.items()}, precise, engine
        )
    else:
        report = checker.rehearsed(known, precise)
    report.require_passed()
    entry = TargetEntry(
        stages=files,
        files=tuple(sorted(used)),
        precision=precision,
        producers=_producers(),
        parity=report.to_json(),
        kept=precise.kept,
        boundary=precise.boundary,
        engine=engine,
    )
    return replace(manifest.with_target(target, entry), ledger=ledger)


def _in_precision(
    model: ir.Model,
    stages: Stages,
    target: Target,
    options: BuildOptions,
    checker: ParityCheck,
    step: Step,
) -> Precise:
    """The stages' graphs in the target's precision."""
    from crossfuse.targets.precision.stages import Precise, half_stages, search_islands

    precision = checker.precision
    if precision == "fp32":
        return Precise(stages.graphs)
    keep: dict[str, str] = {}
    if precision == "mixed":
        points = [_whole_inputs(point.inputs, model) for point in _calibration(checker.reference)]
        keep = search_islands(model, stages.graphs, points, checker.passes, step=step)
    step(f"{target.name}: casting to {precision}")
    ends: list[str] = []
    if options.io_dtype == "fp16":
        ends = [
            v.name or ""
            for v in (*model.graph.inputs, *model.graph.outputs)
            if v.dtype is not None and v.dtype.name == "FLOAT"
        ]
    return half_stages(
        stages.graphs,
        precision,
        keep=keep,
        half_frontier=not target.simulates,
        half_ends=ends,
        without_bf16=target.without_bf16,
    )


def _calibration(reference: ReferenceSet) -> list[ReferencePoint]:
    """The points whose activations a search looks at: the user's, some made, and tails at which
    fp16 is judged."""
    made = [p for p in reference.points if p.kind == MADE]
    tails = [
        p
        for p in reference.points
        if p.kind == TAILS and set(p.half.get("fp16", {})) == set(p.outputs)
    ]
    return [
        *(p for p in reference.points if p.kind == EXAMPLE),
        *made[:_CALIBRATION_POINTS],
        *tails,
    ]


def _whole_inputs(inputs: Mapping[str, Any], model: ir.Model) -> dict[str, Any]:
    """A point's inputs for the whole graph."""
    names = {value.name for value in model.graph.inputs}
    return {name: array for name, array in inputs.items() if name in names}


def _graphs(
    writer: BundleWriter, precise: Precise, target: Target
) -> tuple[dict[str, str], dict[str, str], dict[str, str], set[str]]:
    """Write the graphs of an ONNX target: kernels and reasons by site, file by stage, all files."""
    from crossfuse.targets.graph_files import Places, graph_file, save_graph
    from crossfuse.targets.precision.simulate import half_inputs, simulate

    kernels: dict[str, str] = {}
    reasons: dict[str, str] = {}
    files: dict[str, str] = {}
    used: set[str] = set()
    places: Places = {}
    graphs = precise.graphs
    if target.simulates:
        graphs = {
            stage: simulate(graph, boundary=[*precise.boundary, *half_inputs(graph)])
            for stage, graph in graphs.items()
        }
    for stage, lowered in lower_stages(graphs, target).items():
        files[stage] = graph_file(stage, target.name)
        own = (
            f"weights.{target.name}.bin"
            if stage == "model"
            else f"weights.{stage}.{target.name}.bin"
        )
        used |= {
            files[stage],
            *save_graph(lowered.model, writer.file(files[stage]), writer.file(own), places),
        }
        _note(kernels, reasons, lowered.kernels, lowered.reasons)
    return kernels, reasons, files, used


def _engines(
    writer: BundleWriter,
    manifest: Manifest,
    stages: Stages,
    precise: Precise,
    target: Target,
    options: BuildOptions,
    step: Step,
) -> tuple[dict[str, str], dict[str, str], dict[str, str], set[str], EngineInfo]:
    """Build the engines: kernels and reasons by site, file by stage, all files, and what the
    manifest says about them."""
    from crossfuse.targets.tensorrt.build_engine import BuilderOptions, build_engine
    from crossfuse.targets.tensorrt.libraries import LIBRARIES, library_version
    from crossfuse.targets.tensorrt.shape_profiles import input_shapes, parse_profile, profile_sizes

    profiles = profile_sizes(
        stages.dims,
        stages.example,
        [parse_profile(text) for text in options.profile_shapes],
        stages.shared_batch,
    )
    builder = BuilderOptions(
        options.compute_capabilities, options.memory_limit, options.optimization_level, options.lean
    )  # fmt: skip
    kernels: dict[str, str] = {}
    reasons: dict[str, str] = {}
    files: dict[str, str] = {}
    for stage, graph in precise.graphs.items():
        lowered = target.lower(graph)
        files[stage] = f"{stage}.{target.name}.plan"
        shapes = [input_shapes(stages.specs[stage].inputs, sizes) for sizes in profiles]
        built = build_engine(
            target.name, stage, lowered, writer.file(files[stage]), shapes, builder, step=step
        )
        if built.cached:
            step(f"{target.name}: {stage}: cached")
        _note(kernels, reasons, built.kernels, built.reasons)
    info = EngineInfo(
        library=LIBRARIES[target.name],
        version=library_version(target.name),
        compute_capabilities=options.compute_capabilities,
        profiles=tuple(
            {name: tuple(triple) for name, triple in sizes.items()} for sizes in profiles
        ),
        lean=options.lean,
        request=request_key(manifest, target.name, options) if manifest.files else "",
    )
    return kernels, reasons, files, set(files.values()), info


def _note(
    kernels: dict[str, str],
    reasons: dict[str, str],
    more: Mapping[str, str],
    refused: Mapping[str, str],
) -> None:
    """Add a stage's fusions: an attention that several stages compute counts as fused if it is in
    all of them."""
    reasons |= refused
    for site, kernel in more.items():
        known = kernels.get(site, "").split(", ") if site in kernels else []
        kernels[site] = ", ".join([*known, *([] if kernel in known else [kernel])])
    for site in reasons:
        kernels.pop(site, None)


def _producers() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PRODUCERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
