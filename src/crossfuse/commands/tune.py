"""The command ``crossfuse tune``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crossfuse.commands.options import (
    MEASURED,
    RUN,
    BundlePath,
    Device,
    Json,
    Rounds,
    Sweep,
    Threads,
    complete_targets,
)
from crossfuse.errors import Door

if TYPE_CHECKING:
    from crossfuse.commands.output import Output
    from crossfuse.profiling.tuning import Candidate, TuneReport

__all__ = ["tune"]


def tune(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="One of the bundle's targets; repeat. Where omitted, all.",
            autocompletion=complete_targets,
            rich_help_panel=RUN,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0,
            help="The largest error against the reference, relative to the output's largest "
            "magnitude. Parity has to pass in any case.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    sweep: Sweep = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            "--new-tokens",
            min=0,
            metavar="N",
            help="Of a bundle that generates: time N tokens behind its prompt, 32 where omitted; 0 "
            "for whole calls.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    rounds: Rounds = 12,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=0.001,
            help="Of each target in each round.",
            rich_help_panel=MEASURED,
        ),
    ] = 0.3,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", help="Remove what was recorded of this bundle here; measure nothing."
        ),
    ] = False,
    device: Device = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the fastest of a bundle's targets on this machine that passes, and record it.

    Sessions that name no target then take it. Needs no PyTorch.
    """
    from crossfuse.api.tune import forget_tuned
    from crossfuse.api.tune import tune as tune_bundle
    from crossfuse.commands.output import Output
    from crossfuse.profiling.measure.inputs import parse_sweep
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.runtime.options import SessionOptions

    output = Output(as_json=as_json)
    if forget:
        was = forget_tuned(bundle)
        text = "the record was removed" if was else "there was no record"
        output.result({"forgotten": was}, lambda: output.line(text))
        return
    with output.progress() as progress:
        report = tune_bundle(
            bundle,
            target or [],
            tolerance=tolerance,
            sweep=parse_sweep(sweep or []),
            new_tokens=new_tokens,
            plan=Plan(rounds=rounds, seconds=seconds),
            options=SessionOptions(threads=threads, device_id=device),
            step=progress,
        )
    failure = report.failure
    data = report.to_json() | ({} if failure is None else {"error": failure.to_json()})
    output.result(data, lambda: _show(output, report))
    if failure is not None:
        output.error(failure.paragraph(Door.COMMAND_LINE))
        raise typer.Exit(failure.exit_code)


def _show(output: Output, report: TuneReport) -> None:
    from rich.table import Table

    from crossfuse.profiling.report.summary_text import sizes_text

    table = Table()
    times = [sizes_text(point) for point in report.points]
    if report.new_tokens:
        tokens = f"{report.new_tokens} tokens"
        times = [f"{sizes}, {tokens}" for sizes in times] if len(times) > 1 else [tokens]
    for column in ("target", "precision", "error", "cosine", *times):
        table.add_column(column, justify="left" if column in ("target", "precision") else "right")
    for one in report.candidates:
        chosen = one.target == report.chosen
        table.add_row(*_cells(one), style="bold green" if chosen else "")
    output.console.print(table)
    for one in report.candidates:
        if one.reason:
            output.line(f"{one.target} was not timed: {one.reason}")
    if report.record is not None:
        output.line(f"chosen: {report.chosen}, recorded in {report.record}")


def _cells(one: Candidate) -> list[str]:
    """Its names, its errors, and its time at each point with the ratio to the chosen one's."""
    from crossfuse.profiling.report.summary_text import milliseconds

    times = [
        f"{milliseconds(seconds)} ({ratio.value:.2f}×)"
        for seconds, ratio in zip(one.seconds, one.ratios, strict=True)
    ]
    error = "–" if one.error is None else f"{one.error:.1e}"
    cosine = "–" if one.cosine is None else f"{one.cosine:.7f}"
    return [one.target, one.precision, error, cosine, *times]
