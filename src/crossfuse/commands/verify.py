"""The command ``crossfuse verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossfuse.commands.options import (
    ENGINE,
    SOURCE,
    BuiltTarget,
    BundlePath,
    Device,
    Json,
    MaxDrop,
    MetricFunction,
    Provider,
    PublicKey,
    Signature,
    SourceCheckpoint,
    SourceTask,
    Threads,
    TrustEngines,
    complete_sources,
)
from crossfuse.errors import Door

__all__ = ["verify"]


def verify(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    target: BuiltTarget = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Recompute the reference from this model, instead of using the bundle's own.",
            autocompletion=complete_sources,
            rich_help_panel=SOURCE,
        ),
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE.npz",
            help="Compare on these inputs, arrays by input name; repeat. With --source against the "
            "eager model in float64; without, against the bundle's fused graph, executed by ONNX "
            "Runtime on the CPU in fp32.",
        ),
    ] = None,
    checkpoint: SourceCheckpoint = None,
    task: SourceTask = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            help="Of the fresh inputs; with --source and without --input.",
            rich_help_panel=SOURCE,
        ),
    ] = 1,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect",
            help="Find the first attention or module where the target leaves its tolerance.",
        ),
    ] = False,
    metric: MetricFunction = None,
    max_drop: MaxDrop = None,
    metric_data: Annotated[
        list[Path] | None,
        typer.Option(
            "--metric-data",
            metavar="FILE.npz|FOLDER",
            help="What the metric gets, arrays by name, one set per file; where omitted, some of "
            "the reference's inputs. Repeat.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    trust_engines: TrustEngines = False,
    public_key: PublicKey = None,
    signature: Signature = None,
    as_json: Json = False,
) -> None:
    """Check a bundle's numbers on this machine against the eager model's.

    Needs no PyTorch without --source. docs/guides/verify.md tells what it guarantees, and what it
    can't.
    """
    from crossfuse.api.verify import verify as verify_bundle
    from crossfuse.commands.output import Output
    from crossfuse.commands.tables import show_parity
    from crossfuse.runtime.options import SessionOptions

    output = Output(as_json=as_json)
    with output.progress() as progress:
        report = verify_bundle(
            bundle,
            target,
            source=source,
            checkpoint=checkpoint,
            task=task,
            inputs=inputs or None,
            seed=seed,
            bisect=bisect,
            metric=metric,
            max_drop=max_drop,
            metric_data=metric_data,
            options=SessionOptions(
                threads=threads, provider=provider, device_id=device, trust_engines=trust_engines
            ),
            public_key=public_key,
            signature=signature,
            step=progress,
        )
    failure = report.failure
    data = report.to_json() | ({} if failure is None else {"error": failure.to_json()})
    output.result(data, lambda: show_parity(output, report))
    if failure is not None:
        output.error(failure.paragraph(Door.COMMAND_LINE))
        raise typer.Exit(failure.exit_code)
