"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowUnfused",
    "BundlePath",
    "Capabilities",
    "Device",
    "IoDtype",
    "Json",
    "Precision",
    "Profiles",
    "Provider",
    "Threads",
]

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
AllowUnfused = Annotated[
    bool, typer.Option("--allow-unfused", help="Warn, instead of fail, about attentions that did not fuse.")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, fp16, bf16 or mixed; where omitted, fp16 for engines, fp32 for the others."),
]
IoDtype = Annotated[str | None, typer.Option("--io-dtype", help="fp16: floating inputs and outputs in fp16, too.")]
Capabilities = Annotated[
    list[str] | None, typer.Option("--sm", metavar="8.9", help="A GPU's compute capability, for tensorrt-rtx; repeat.")
]
Profiles = Annotated[
    list[str] | None,
    typer.Option("--profile-shapes", metavar="DIM=MIN:OPT:MAX,…", help="An engine's optimization profile; repeat."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads inside one operator.")]
Device = Annotated[int, typer.Option("--device", min=0, help="Which GPU, for targets that need one.")]
Provider = Annotated[
    str | None, typer.Option("--provider", help="ONNX Runtime execution provider instead of the target's own.")
]
