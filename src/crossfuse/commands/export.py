"""The commands ``crossfuse export`` and ``crossfuse build``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossfuse.commands.options import (
    ENGINE,
    MODEL,
    AllowMissing,
    AllowUnfused,
    AllowUnquantized,
    BundlePath,
    Calibrate,
    Capabilities,
    IoDtype,
    Json,
    MaxDrop,
    MetricFunction,
    Precision,
    Profiles,
    SampleAudio,
    SampleImage,
    SampleText,
    SampleVideo,
    SizeName,
    complete_sources,
    complete_targets,
    dynamic_axes,
)
from crossfuse.core.target import CPU_TARGET

if TYPE_CHECKING:
    from crossfuse.bundle.store import Bundle
    from crossfuse.commands.output import Output

__all__ = ["build", "export"]


def export(  # noqa: PLR0913 -- a command: its parameters are its options
    source: Annotated[
        str,
        typer.Argument(
            help="A zoo name, hf:FOLDER-OR-ID, package.module:factory or path/file.py:factory "
            "(returns a ModelSpec), or model.onnx.",
            autocompletion=complete_sources,
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The bundle's folder.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="onnx, ort-cpu, openvino, ort-cuda, tensorrt, tensorrt-rtx, or one that a package "
            "adds; "
            "repeat.",
            autocompletion=complete_targets,
            rich_help_panel=ENGINE,
        ),
    ] = None,
    precision: Precision = None,
    io_dtype: IoDtype = None,
    sm: Capabilities = None,
    profile_shapes: Profiles = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context", help="An input that changes rarely; repeat.", rich_help_panel=MODEL
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic",
            metavar="INPUT:AXIS=NAME[:MIN:MAX]",
            help="A dynamic axis; repeat.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    size: Annotated[
        SizeName, typer.Option("--size", help="Of a zoo model.", rich_help_panel=MODEL)
    ] = "published",
    seed: Annotated[
        int,
        typer.Option("--seed", help="Of a zoo model's random weights.", rich_help_panel=MODEL),
    ] = 0,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            help="Folder of a transformers checkpoint for a zoo model.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Of an hf: source: a pipeline's task, or a class name.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that comes with an hf: checkpoint.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    allow_missing: AllowMissing = False,
    example: Annotated[
        list[Path] | None,
        typer.Option(
            "--example",
            metavar="FILE.npz",
            help="Real inputs, arrays by input name: targets are compared and calibrated on them, "
            "too. The first gives a model.onnx its example inputs, and an hf: source whose own "
            "don't fit it; repeat.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    image: SampleImage = None,
    text: SampleText = None,
    audio: SampleAudio = None,
    video: SampleVideo = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            metavar="TOKENS",
            help="Of an hf: source: give the first tokens with the context, the rest with each "
            "query: how many, or placeholders, up to and with the last placeholder of an image. "
            "The rest grows token by token, where the model can.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    drop_output: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-output",
            metavar="NAME",
            help="An output to leave out, * for any text; repeat.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    keep_probabilities: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-probabilities",
            metavar="SITE[:HEAD,HEAD]",
            help="An attention whose probabilities are computed beside the fused operator, as an "
            "output; repeat.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    decode: Annotated[
        str | None,
        typer.Option(
            "--decode",
            metavar="INPUT",
            help="The ids of a model that decodes token by token.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Don't split, although the source names context inputs.",
            rich_help_panel=ENGINE,
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="For work in progress: compare at the examples and one made point; the bundle "
            "says so.",
            rich_help_panel=ENGINE,
        ),
    ] = False,
    calibrate: Calibrate = None,
    metric: MetricFunction = None,
    max_drop: MaxDrop = None,
    allow_unfused: AllowUnfused = False,
    allow_unquantized: AllowUnquantized = False,
    as_json: Json = False,
) -> None:
    """Export a model to a bundle: fused, lowered, and checked against eager PyTorch."""
    from crossfuse.api.export import export as export_bundle
    from crossfuse.commands.output import Output

    output = Output(as_json=as_json)
    with output.progress() as progress:
        progress("loading PyTorch")
        bundle = export_bundle(
            source,
            out,
            target or [CPU_TARGET],
            precision=precision,
            io_dtype=io_dtype,
            compute_capabilities=sm or [],
            profile_shapes=profile_shapes or [],
            calibrate=calibrate or (),
            metric=metric,
            max_drop=max_drop,
            allow_unfused=allow_unfused,
            allow_unquantized=allow_unquantized,
            size=size,
            seed=seed,
            checkpoint=checkpoint,
            task=task,
            trust_remote_code=trust_remote_code,
            allow_missing=allow_missing,
            context=context or [],
            dynamic=dynamic_axes(dynamic or []),
            decode=decode,
            drop_outputs=drop_output or [],
            keep_probabilities=keep_probabilities or [],
            example=example or [],
            image=image or [],
            text=text or [],
            audio=audio or [],
            video=video or [],
            prefix=prefix,
            whole=whole,
            quick=quick,
            step=progress,
        )
    _show(output, bundle)


def build(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help="onnx, ort-cpu, openvino, ort-cuda, tensorrt, tensorrt-rtx, or one that a package "
            "adds.",
            autocompletion=complete_targets,
            rich_help_panel=ENGINE,
        ),
    ],
    precision: Precision = None,
    io_dtype: IoDtype = None,
    sm: Capabilities = None,
    profile_shapes: Profiles = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit",
            metavar="BYTES",
            help="Of an engine builder's workspace.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level",
            min=0,
            max=5,
            help="Of an engine builder.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    lean: Annotated[
        bool,
        typer.Option(
            "--lean",
            help="A TensorRT engine for the lean runtime and later versions of the same major.",
            rich_help_panel=ENGINE,
        ),
    ] = False,
    calibrate: Calibrate = None,
    metric: MetricFunction = None,
    max_drop: MaxDrop = None,
    allow_unfused: AllowUnfused = False,
    allow_unquantized: AllowUnquantized = False,
    as_json: Json = False,
) -> None:
    """Add a target to a bundle, checked as at export."""
    from crossfuse.api.build import build as build_bundle
    from crossfuse.commands.output import Output

    output = Output(as_json=as_json)
    with output.progress() as progress:
        built = build_bundle(
            bundle,
            target,
            precision=precision,
            io_dtype=io_dtype,
            compute_capabilities=sm or [],
            profile_shapes=profile_shapes or [],
            memory_limit=memory_limit,
            optimization_level=optimization_level,
            lean=lean,
            calibrate=calibrate or (),
            metric=metric,
            max_drop=max_drop,
            allow_unfused=allow_unfused,
            allow_unquantized=allow_unquantized,
            step=progress,
        )
    _show(output, built)


def _show(output: Output, bundle: Bundle) -> None:
    from crossfuse.commands.tables import show_built

    data = json.loads(bundle.manifest.dumps()) | {"path": str(bundle.path)}
    output.result(data, lambda: show_built(output, bundle))
