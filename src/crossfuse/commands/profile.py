"""The command ``crossfuse profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from crossfuse.commands.options import (
    MEASURED,
    SOURCE,
    BuiltTarget,
    Device,
    Json,
    Provider,
    Rounds,
    SourceCheckpoint,
    SourceTask,
    Sweep,
    Threads,
    TrustEngines,
    complete_sources,
)
from crossfuse.core.files import require_writable, write_text
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from crossfuse.commands.output import Output

__all__ = ["complete_against", "profile"]

_REPORT = "Reports"


def complete_against(incomplete: str) -> list[str]:
    """Lists of baselines that a list may become by its last name."""
    from crossfuse.profiling.baselines import BASELINES

    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [
        f"{before}{comma}{name}"
        for name in BASELINES
        if name.startswith(last) and name not in taken
    ]


def profile(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")
    ] = None,
    target: BuiltTarget = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="BASELINE,…",
            help="eager, compile, onnx, hf, openvino, openvino-f32, openvino-int8, eager-bf16, "
            "ort-int8; on GPUs compile-max, eager-fp16, tensorrt.",
            autocompletion=complete_against,
            rich_help_panel=SOURCE,
        ),
    ] = "",
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="The baselines' model, where the bundle's isn't the zoo's.",
            autocompletion=complete_sources,
            rich_help_panel=SOURCE,
        ),
    ] = None,
    checkpoint: SourceCheckpoint = None,
    task: SourceTask = None,
    sweep: Sweep = None,
    rounds: Rounds = 12,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=0.001,
            help="Of each callable in each round.",
            rich_help_panel=MEASURED,
        ),
    ] = 0.3,
    cold_starts: Annotated[
        int,
        typer.Option(
            "--cold-starts", min=0, help="Fresh processes to start.", rich_help_panel=MEASURED
        ),
    ] = 5,
    callers: Annotated[
        str,
        typer.Option(
            "--callers",
            metavar="N,…",
            help="Also with N callers at once.",
            rich_help_panel=MEASURED,
        ),
    ] = "",
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            metavar="R,…",
            help="Also with R arrivals per second, at random.",
            rich_help_panel=MEASURED,
        ),
    ] = "",
    load_seconds: Annotated[
        float,
        typer.Option(
            "--load-seconds",
            min=0.01,
            help="How long each load lasts.",
            rich_help_panel=MEASURED,
        ),
    ] = 5.0,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace/--no-trace", help="Tell where the time goes.", rich_help_panel=MEASURED
        ),
    ] = True,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="BEFORE AFTER",
            help="Two reports, instead of a bundle.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            min=0,
            help="How much slower is a regression.",
            rich_help_panel=_REPORT,
        ),
    ] = 0.05,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    trust_engines: TrustEngines = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.json",
            help="Write the report's JSON.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE.html",
            help="Write the report as a page.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency, against baselines in the same rounds; or compare two reports."""
    from crossfuse.api.profile import profile as profile_bundle
    from crossfuse.commands.latency_table import show_latency
    from crossfuse.commands.output import Output
    from crossfuse.core.json_codec import json_text
    from crossfuse.profiling.measure.inputs import parse_sweep
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.report.page import render, require_html
    from crossfuse.runtime.options import SessionOptions

    output = Output(as_json=as_json)
    if compare is not None:
        _compare(output, *compare, threshold)
    if bundle is None:
        raise InputError(
            "what to profile is not given", expected="BUNDLE, or --compare BEFORE AFTER"
        )
    if html is not None:
        require_html()
    for file in (out, html):
        if file is not None:
            require_writable(file)
    with output.progress() as progress:
        report = profile_bundle(
            bundle,
            target,
            against=[name for name in against.split(",") if name],
            source=source,
            checkpoint=checkpoint,
            task=task,
            sweep=parse_sweep(sweep or []),
            plan=Plan(rounds=rounds, seconds=seconds),
            options=SessionOptions(
                threads=threads, provider=provider, device_id=device, trust_engines=trust_engines
            ),
            callers=[int(number) for number in _numbers(callers, "--callers")],
            rates=_numbers(rates, "--rates"),
            load_seconds=load_seconds,
            cold_starts=cold_starts,
            trace=trace,
            step=progress,
        )
    data = report.to_json()
    if out is not None:
        write_text(out, json_text(data))
    if html is not None:
        write_text(html, render(report))
    output.result(data, lambda: show_latency(output, report))


def _compare(output: Output, before: Path, after: Path, threshold: float) -> NoReturn:
    """Show what changed between two reports; exit code 1 where something became slower."""
    from crossfuse.commands.latency_table import show_changes
    from crossfuse.profiling.report.compare import compare_reports

    changes = compare_reports(before, after, threshold)
    output.result([change.to_json() for change in changes], lambda: show_changes(output, changes))
    raise typer.Exit(int(any(change.regressed for change in changes)))


def _numbers(text: str, where: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",") if number]
    except ValueError:
        numbers = [0.0]
    if any(number <= 0 for number in numbers):
        raise InputError(
            "a list of numbers can't be read",
            where=where,
            got=repr(text),
            expected="positive numbers: 1,4",
        )
    return numbers
