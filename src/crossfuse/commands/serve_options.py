"""Options that `package`, `serve` and `map` share."""

from __future__ import annotations

from typing import Annotated

import typer

from crossfuse.commands.options import RUN

__all__ = [
    "REQUESTS",
    "Address",
    "AllowNan",
    "BodyTimeout",
    "CacheMb",
    "Cpus",
    "Gpus",
    "MaxBatch",
    "MaxJsonBytes",
    "MaxRows",
    "Merge",
    "Name",
    "Slots",
    "Wait",
]

REQUESTS = "Requests"
"""A panel of the help."""

Name = Annotated[
    str | None, typer.Option("--name", help="Of the model in URLs; where omitted, the bundle's.")
]
CacheMb = Annotated[
    int,
    typer.Option(
        "--cache-mb",
        min=0,
        help="Megabytes of kept contexts; 0 encodes for every request.",
        rich_help_panel=REQUESTS,
    ),
]
MaxRows = Annotated[
    int,
    typer.Option(
        "--max-rows",
        min=1,
        help="Queries of several requests in one call, at most.",
        rich_help_panel=REQUESTS,
    ),
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge/--no-merge",
        help="Whether requests may share a call.",
        rich_help_panel=REQUESTS,
    ),
]
AllowNan = Annotated[
    bool,
    typer.Option("--allow-nan", help="Take inputs that hold NaN.", rich_help_panel=REQUESTS),
]
MaxBatch = Annotated[
    int,
    typer.Option(
        "--max-batch",
        min=1,
        help="Largest first axis of an input.",
        rich_help_panel=REQUESTS,
    ),
]
MaxJsonBytes = Annotated[
    int,
    typer.Option(
        "--max-json-bytes",
        min=1,
        help="Of a body's JSON; tensors sent as bytes don't count.",
        rich_help_panel=REQUESTS,
    ),
]
BodyTimeout = Annotated[
    float,
    typer.Option(
        "--body-timeout",
        min=0.1,
        help="Seconds that a request's body may take to come.",
        rich_help_panel=REQUESTS,
    ),
]
Slots = Annotated[
    int | None,
    typer.Option(
        "--slots",
        min=0,
        help="Sequences that each generates side by side; where omitted, 8 if the bundle decodes.",
        rich_help_panel=REQUESTS,
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--batch-wait-ms",
        min=0,
        help="How long a request waits for others.",
        rich_help_panel=REQUESTS,
    ),
]
Cpus = Annotated[
    float,
    typer.Option(
        "--num-cpus",
        min=0,
        help="That each reserves; also its threads.",
        rich_help_panel=RUN,
    ),
]
Gpus = Annotated[
    float, typer.Option("--num-gpus", min=0, help="That each reserves.", rich_help_panel=RUN)
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Of a running Ray cluster; where omitted, a Ray of its own.",
        rich_help_panel=RUN,
    ),
]
