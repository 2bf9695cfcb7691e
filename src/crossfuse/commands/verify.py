"""The command `verify`: a bundle's target checked again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crossfuse.commands.options import (
    BundlePath,
    Device,
    Json,
    Provider,
    SourceCheckpoint,
    SourceTask,
    Threads,
)
from crossfuse.errors import Door

__all__ = ["verify"]


def verify(
    bundle: BundlePath,
    target: Annotated[
        str | None, typer.Option("--target", help="Where omitted, the best that runs here.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Recompute the reference from this model, instead of using the bundle's own.",
        ),
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE.npz",
            help="Compare on these inputs, arrays by input name; repeat. With --source against the "
            "eager model in float64; "
            "without, against the bundle's fused graph, executed by ONNX Runtime on the CPU in "
            "fp32.",
        ),
    ] = None,
    checkpoint: SourceCheckpoint = None,
    task: SourceTask = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the fresh inputs; with --source and without --input.")
    ] = 1,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect",
            help="Find the first attention or module where the target leaves its tolerance.",
        ),
    ] = False,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check a bundle's numbers on this machine against the eager model's. Needs no PyTorch without
    --source.

    docs/verify.md tells what it guarantees, and what it can't.
    """
    from crossfuse.api import export as pipeline
    from crossfuse.commands.output import Output
    from crossfuse.runtime.options import SessionOptions

    output = Output(as_json=as_json)
    options = SessionOptions(threads=threads, provider=provider, device_id=device)
    of_source: dict[str, Any] = {"source": source, "checkpoint": checkpoint, "task": task}
    with output.progress() as step:
        report = pipeline.verify(
            bundle,
            target,
            inputs=inputs or None,
            seed=seed,
            bisect=bisect,
            options=options,
            step=step,
            **of_source,
        )
    failure = report.failure
    data = report.to_json() | ({} if failure is None else {"error": failure.to_json()})
    output.result(data, lambda: output.parity(report))
    if failure is not None:
        output.error(failure.paragraph(Door.COMMAND_LINE))
        raise typer.Exit(failure.exit_code)
