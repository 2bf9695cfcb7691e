"""The command ``crossfuse map``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossfuse.commands.generation_options import named_settings
from crossfuse.commands.options import (
    RUN,
    BuiltTarget,
    BundlePath,
    Json,
    PublicKey,
    Signature,
    TrustEngines,
)
from crossfuse.commands.serve_options import Address, AllowNan, CacheMb, Cpus, Gpus, Merge
from crossfuse.errors import InputError

__all__ = ["map_command"]


def map_command(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    source: Annotated[
        Path, typer.Option("--input", metavar="FOLDER|FILE.parquet", help="NPZ files, or Parquet.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Answers; go on where a job was killed."
        ),
    ],
    target: BuiltTarget = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=1, help="Processes, each with a session.", rich_help_panel=RUN
        ),
    ] = 1,
    num_cpus: Cpus = 1.0,
    num_gpus: Gpus = 0.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Rows answered at once.")
    ] = 16,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", min=1, help="Rows that are done as a whole.")
    ] = 64,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate",
            help="A text for each row: of sounds, images, JSON lines, Parquet or NPZ files.",
        ),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of --generate, as generation_config.json names it; repeat.",
        ),
    ] = None,
    cache_mb: CacheMb = 1000,
    merge: Merge = True,
    allow_nan: AllowNan = False,
    trust_engines: TrustEngines = False,
    public_key: PublicKey = None,
    signature: Signature = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Answer every row of a folder or of files with Ray Data; with --generate, by a text.

    Run again, it goes on where it was killed.
    """
    from crossfuse.commands.output import Output
    from crossfuse.serve.bulk.job import FAILED
    from crossfuse.serve.bulk.run import MapOptions, planned
    from crossfuse.serve.cluster import connected, local_ray
    from crossfuse.serve.load_engine import EngineOptions

    output = Output(as_json=as_json)
    engine = EngineOptions(
        target=target,
        cache_mb=cache_mb,
        merge=merge,
        trust_engines=trust_engines,
        public_key=None if public_key is None else str(public_key.absolute()),
        signature=None if signature is None else str(signature.absolute()),
    )
    if settings and not generate:
        raise InputError("settings of generation need --generate", where="--set", got=settings[0])
    chosen = named_settings(settings or ()) if generate else None
    options = MapOptions(
        engine, workers, num_cpus, num_gpus, batch_size, shard_rows, allow_nan, chosen
    )
    plan = planned(bundle, source, out, options)
    # One CPU more, which Ray Data's own tasks need beside the workers.
    started = (
        local_ray(cpus=workers * max(1.0, num_cpus) + 1) if address is None else connected(address)
    )
    with started, output.progress() as progress:
        report = plan.run(progress)

    def render() -> None:
        output.line(
            f"{report.rows} rows ({report.done_before} done before), {report.failed} failed; "
            f"answers in {report.output}"
        )
        if report.failed:
            output.line(f"reasons in {out / FAILED}")

    output.result(report.to_json(), render)
    raise typer.Exit(int(report.failed > 0))
