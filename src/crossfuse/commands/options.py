"""Options and arguments that several commands share, and what some of them mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crossfuse.errors import InputError

__all__ = [
    "AllowMissing",
    "AllowUnfused",
    "BundlePath",
    "Capabilities",
    "Device",
    "IoDtype",
    "Json",
    "Precision",
    "Profiles",
    "Provider",
    "SourceCheckpoint",
    "SourceTask",
    "Threads",
    "override_spec",
]

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
AllowUnfused = Annotated[
    bool,
    typer.Option(
        "--allow-unfused", help="Warn, instead of fail, about attentions that did not fuse."
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Let weights that a checkpoint lacks stay random; the bundle says which.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32, fp16, bf16 or mixed; where omitted, fp16 for engines, fp32 for the others.",
    ),
]
IoDtype = Annotated[
    str | None, typer.Option("--io-dtype", help="fp16: floating inputs and outputs in fp16, too.")
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--sm", metavar="8.9", help="A GPU's compute capability, for tensorrt-rtx; repeat."
    ),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profile-shapes",
        metavar="DIM=MIN:OPT:MAX,…",
        help="An engine's optimization profile; repeat.",
    ),
]
SourceCheckpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="Of a zoo model that was exported with one.")
]
SourceTask = Annotated[
    str | None, typer.Option("--task", help="Of an hf: source that was exported with one.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads inside one operator.")]
Device = Annotated[
    int, typer.Option("--device", min=0, help="Which GPU, for targets that need one.")
]
Provider = Annotated[
    str | None,
    typer.Option("--provider", help="ONNX Runtime execution provider instead of the target's own."),
]


def override_spec(spec: Any, context: list[str], dynamic: list[str], decode: str | None) -> Any:
    """The spec with ``--context``, ``--dynamic`` and ``--decode`` in place of its own."""
    from dataclasses import replace

    axes: dict[str, dict[int, str]] = {name: dict(a) for name, a in spec.dynamic.items()}
    for text in dynamic:
        where, _, dim = text.partition("=")
        name, _, axis = where.rpartition(":")
        if not dim or not axis.isdigit() or not name:
            raise InputError(
                "--dynamic can't be read", got=repr(text), expected="INPUT:AXIS=NAME[:MIN:MAX]"
            )
        axes.setdefault(name, {})[int(axis)] = dim
    possible = spec.decode_where_possible and decode is None
    spec = replace(
        spec, dynamic=axes, context=tuple(context) or spec.context, decode=decode or spec.decode
    )
    return replace(spec, decode_where_possible=possible)
