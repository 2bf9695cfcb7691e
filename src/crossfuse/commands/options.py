"""Options and arguments that several commands share: their types, help, panels and completion.

Closed sets are `Literal` types, so that help lists them, shells complete them and the parser
refuses the rest. Targets can be added by others (`register_target`), so they are text, completed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from crossfuse.errors import InputError

__all__ = [
    "ENGINE",
    "MEASURED",
    "MODEL",
    "RUN",
    "SAMPLES",
    "SOURCE",
    "AllowMissing",
    "AllowUnfused",
    "AllowUnquantized",
    "BuiltTarget",
    "BundlePath",
    "Calibrate",
    "Capabilities",
    "Device",
    "HalfType",
    "IoDtype",
    "Json",
    "MaxDrop",
    "MetricFunction",
    "Precision",
    "PrecisionName",
    "Profiles",
    "Provider",
    "PublicKey",
    "Rounds",
    "SampleAudio",
    "SampleImage",
    "SampleText",
    "SampleVideo",
    "Signature",
    "SizeName",
    "SourceCheckpoint",
    "SourceTask",
    "Sweep",
    "Threads",
    "TrustEngines",
    "complete_sources",
    "complete_targets",
    "dynamic_axes",
]

MODEL = "The model"
SOURCE = "The model to compare with"
ENGINE = "What is built"
RUN = "Where it runs"
SAMPLES = "Samples for the processor of an hf: source"
MEASURED = "What is measured"
"""Panels of the help, which group options."""

SizeName = Literal["tiny", "published"]
PrecisionName = Literal["fp32", "fp16", "bf16", "mixed", "int8", "mixed-int8", "fp8", "int4"]
HalfType = Literal["fp32", "fp16"]


def complete_targets(incomplete: str) -> list[tuple[str, str]]:
    """Targets that a name may become, with their summaries."""
    from crossfuse.core.target import TARGETS

    return [
        (target.name, target.summary)
        for target in TARGETS.values()
        if target.name.startswith(incomplete)
    ]


def complete_sources(incomplete: str) -> list[tuple[str, str]]:
    """Zoo models that a source may become, with their summaries."""
    from crossfuse.models.registry import ZOO

    return [
        (entry.name, entry.summary) for entry in ZOO.values() if entry.name.startswith(incomplete)
    ]


BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
AllowUnfused = Annotated[
    bool,
    typer.Option(
        "--allow-unfused",
        help="Warn, instead of fail, about attentions that did not fuse.",
        rich_help_panel=ENGINE,
    ),
]
AllowUnquantized = Annotated[
    bool,
    typer.Option(
        "--allow-unquantized",
        help="Let linear layers that can't be quantised compute in fp32; the bundle says which.",
        rich_help_panel=ENGINE,
    ),
]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibrate",
        metavar="FILE.npz|FOLDER",
        help="Real inputs that a low precision is chosen on, arrays by input name, one set per "
        "file; where omitted, the reference's. Repeat.",
        rich_help_panel=ENGINE,
    ),
]
MetricFunction = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="FILE.py:FUNCTION",
        help="Decides whether a low precision passes: a function of (run, data) that returns a "
        "number, larger is better. Needs --max-drop.",
        rich_help_panel=ENGINE,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="NUMBER",
        help="How far the metric may be below its value in fp32.",
        rich_help_panel=ENGINE,
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="DIM=SIZE,…",
        help="Sizes of a dimension to measure at; repeat.",
        rich_help_panel=MEASURED,
    ),
]
Rounds = Annotated[
    int, typer.Option("--rounds", min=3, help="Rounds of samples.", rich_help_panel=MEASURED)
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Let weights that a checkpoint lacks stay random; the bundle says which.",
        rich_help_panel=MODEL,
    ),
]
SampleImage = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="An image, in place of a made one; repeat.",
        rich_help_panel=SAMPLES,
    ),
]
SampleText = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        help="A prompt, question or caption, in place of a made one; repeat.",
        rich_help_panel=SAMPLES,
    ),
]
SampleAudio = Annotated[
    list[Path] | None,
    typer.Option(
        "--audio",
        metavar="FILE",
        help="A sound (WAV, or NPY at the processor's rate), in place of a made one; repeat.",
        rich_help_panel=SAMPLES,
    ),
]
SampleVideo = Annotated[
    list[Path] | None,
    typer.Option(
        "--video",
        metavar="PATH",
        help="A video (a folder of frames, GIF or WebP), in place of a made one; repeat.",
        rich_help_panel=SAMPLES,
    ),
]
BuiltTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Where omitted, what `crossfuse tune` recorded, or the best that runs here.",
        autocompletion=complete_targets,
        rich_help_panel=RUN,
    ),
]
Precision = Annotated[
    PrecisionName | None,
    typer.Option(
        "--precision",
        help="Where omitted, fp16 for engines, fp32 for the others. int8 and mixed-int8 are of "
        "ort-cpu, openvino and engines, fp8 of engines, int4 of ort-cpu.",
        rich_help_panel=ENGINE,
    ),
]
IoDtype = Annotated[
    HalfType | None,
    typer.Option(
        "--io-dtype",
        help="fp16: floating inputs and outputs in fp16, too.",
        rich_help_panel=ENGINE,
    ),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--sm",
        metavar="8.9",
        help="A GPU's compute capability, for tensorrt-rtx; repeat.",
        rich_help_panel=ENGINE,
    ),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profile-shapes",
        metavar="DIM=MIN:OPT:MAX,…",
        help="An engine's optimization profile; repeat.",
        rich_help_panel=ENGINE,
    ),
]
SourceCheckpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="Of a zoo model that was exported with one.",
        rich_help_panel=SOURCE,
    ),
]
SourceTask = Annotated[
    str | None,
    typer.Option(
        "--task", help="Of an hf: source that was exported with one.", rich_help_panel=SOURCE
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads inside one operator.", rich_help_panel=RUN),
]
Device = Annotated[
    int,
    typer.Option(
        "--device", min=0, help="Which GPU, for targets that need one.", rich_help_panel=RUN
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        help="ONNX Runtime execution provider instead of the target's own.",
        rich_help_panel=RUN,
    ),
]
TrustEngines = Annotated[
    bool,
    typer.Option(
        "--trust-engines",
        help="Open engines that were not built on this machine: they are programs.",
        rich_help_panel=RUN,
    ),
]
PublicKey = Annotated[
    Path | None,
    typer.Option(
        "--public-key",
        metavar="KEY.pem",
        help="Take only what the owner of this key has signed.",
        rich_help_panel=RUN,
    ),
]
Signature = Annotated[
    Path | None,
    typer.Option(
        "--signature",
        metavar="FILE.sig",
        help="Of the bundle; where omitted, beside its folder. Needs --public-key.",
        rich_help_panel=RUN,
    ),
]


def dynamic_axes(texts: Iterable[str]) -> dict[str, dict[int, str]]:
    """``--dynamic INPUT:AXIS=NAME[:MIN:MAX]``, several, as input → axis → dimension.

    Raises:
        InputError: a text that can't be read.
    """
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        where, _, dim = text.partition("=")
        name, _, axis = where.rpartition(":")
        if not dim or not axis.isdigit() or not name:
            raise InputError(
                "--dynamic can't be read", got=repr(text), expected="INPUT:AXIS=NAME[:MIN:MAX]"
            )
        axes.setdefault(name, {})[int(axis)] = dim
    return axes
