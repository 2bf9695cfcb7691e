"""The command ``crossfuse run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossfuse.commands.options import (
    BuiltTarget,
    BundlePath,
    Device,
    Json,
    Provider,
    Threads,
    TrustEngines,
)
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from crossfuse.commands.output import Output
    from crossfuse.runtime import Session

__all__ = ["run"]


def run(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    inputs: Annotated[
        list[Path],
        typer.Option("--input", metavar="FILE.npz", help="Arrays by input name; repeat."),
    ],
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", metavar="FILE.npz", help="Where the outputs go, one for each --input."
        ),
    ] = None,
    context: Annotated[
        Path | None,
        typer.Option(
            "--context",
            metavar="FILE.npz",
            help="Context inputs, encoded once; each --input then holds queries.",
        ),
    ] = None,
    target: BuiltTarget = None,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    trust_engines: TrustEngines = False,
    as_json: Json = False,
) -> None:
    """Run a bundle on inputs from files. Needs no PyTorch."""
    from crossfuse.commands.output import Output
    from crossfuse.runtime import SessionOptions, load

    output = Output(as_json=as_json)
    if out and len(out) != len(inputs):
        raise InputError(
            "each --input needs its own --output", got=f"{len(inputs)} inputs, {len(out)} outputs"
        )
    options = SessionOptions(
        threads=threads, provider=provider, device_id=device, trust_engines=trust_engines
    )
    with load(bundle, target, options) as session:
        results = _results(session, context, inputs, out or [None] * len(inputs))
        used = {"target": session.target, "provider": session.provider}
    data: dict[str, Any] = {"results": results}
    if len(results) == 1:
        data = {key: value for key, value in results[0].items() if key != "input"}
    output.result({**used, **data}, lambda: _show(output, used, results))


def _results(
    session: Session, context: Path | None, inputs: Sequence[Path], out: Sequence[Path | None]
) -> list[dict[str, Any]]:
    """Run each file of inputs, write its outputs where asked, and describe them."""
    from crossfuse.core.npz import load_arrays, save_arrays

    encoded = None if context is None else session.encode(load_arrays(context))
    results = []
    for file, destination in zip(inputs, out, strict=True):
        arrays = load_arrays(file)
        outputs = session.run(arrays) if encoded is None else session.query(encoded, arrays)
        if destination is not None:
            save_arrays(destination, outputs)
        results.append(
            {
                "input": str(file),
                "outputs": {
                    name: {"dtype": str(array.dtype), "shape": list(array.shape)}
                    for name, array in outputs.items()
                },
                "written_to": None if destination is None else str(destination),
            }
        )
    return results


def _show(output: Output, used: dict[str, str], results: list[dict[str, Any]]) -> None:
    output.line(f"{used['target']} on {used['provider']}")
    for result in results:
        if len(results) > 1:
            output.line(f"{result['input']}:")
        for name, about in result["outputs"].items():
            output.line(f"{name}: {about['dtype']}{about['shape']}")
        if result["written_to"]:
            output.line(f"written to {result['written_to']}")
