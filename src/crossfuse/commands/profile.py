"""The command ``crossfuse profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossfuse.commands.options import (
    Device,
    Json,
    Provider,
    SourceCheckpoint,
    SourceTask,
    Threads,
)
from crossfuse.core.outputs import require_writable, write_text
from crossfuse.errors import InputError

__all__ = ["profile"]


def profile(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Where omitted, the best that runs here.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="RIVAL,…",
            help="eager, compile, onnx, hf, openvino; on GPUs compile-max, eager-fp16, tensorrt.",
        ),
    ] = "",
    source: Annotated[
        str | None,
        typer.Option("--source", help="The rivals' model, where the bundle's isn't the zoo's."),
    ] = None,
    checkpoint: SourceCheckpoint = None,
    task: SourceTask = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", metavar="DIM=SIZE,…", help="Sizes of a dimension to measure at; repeat."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Rounds of samples.")] = 12,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.001, help="Of each callable in each round.")
    ] = 0.3,
    cold_starts: Annotated[
        int, typer.Option("--cold-starts", min=0, help="Fresh processes to start.")
    ] = 5,
    callers: Annotated[
        str, typer.Option("--callers", metavar="N,…", help="Also with N callers at once.")
    ] = "",
    rates: Annotated[
        str,
        typer.Option("--rates", metavar="R,…", help="Also with R arrivals per second, at random."),
    ] = "",
    load_seconds: Annotated[
        float, typer.Option("--load-seconds", min=0.01, help="How long each load lasts.")
    ] = 5.0,
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Tell where the time goes.")
    ] = True,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="BEFORE AFTER", help="Two reports, instead of a bundle."),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, help="How much slower is a regression.")
    ] = 0.05,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Write the report's JSON."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE.html", help="Write the report as a page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure latency, against rivals in the same rounds; or compare two reports for
    regressions."""
    from crossfuse.api import export as pipeline
    from crossfuse.commands.output import Output
    from crossfuse.core.json_codec import json_text
    from crossfuse.profiling.measure.inputs import parse_sweep
    from crossfuse.profiling.measure.sampling import Plan
    from crossfuse.profiling.report.compare import compare_reports
    from crossfuse.profiling.report.page import render, require_html
    from crossfuse.runtime.options import SessionOptions

    output = Output(as_json=as_json)
    if compare is not None:
        changes = compare_reports(*compare, threshold)
        output.result([change.to_json() for change in changes], lambda: output.changes(changes))
        raise typer.Exit(int(any(change.regressed for change in changes)))
    if bundle is None:
        raise InputError(
            "what to profile is not given", expected="BUNDLE, or --compare BEFORE AFTER"
        )
    if html is not None:
        require_html()
    for file in (out, html):
        if file is not None:
            require_writable(file)
    with output.progress() as step:
        report = pipeline.profile(
            bundle,
            target,
            against=[name for name in against.split(",") if name],
            source=source,
            checkpoint=checkpoint,
            task=task,
            sweep=parse_sweep(sweep or []),
            plan=Plan(rounds=rounds, seconds=seconds),
            options=SessionOptions(threads=threads, provider=provider, device_id=device),
            callers=[int(number) for number in _numbers(callers, "--callers")],
            rates=_numbers(rates, "--rates"),
            load_seconds=load_seconds,
            cold_starts=cold_starts,
            trace=trace,
            step=step,
        )
    data = report.to_json()
    if out is not None:
        write_text(out, json_text(data))
    if html is not None:
        write_text(html, render(report))
    output.result(data, lambda: output.latency(report))


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
