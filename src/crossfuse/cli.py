"""The command line: parses, calls, renders. `crossfuse.commands.process` turns what happens here
into exit codes and errors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from crossfuse.commands.options import (
    AllowMissing,
    AllowUnfused,
    BundlePath,
    Capabilities,
    Device,
    IoDtype,
    Json,
    Precision,
    Profiles,
    Provider,
    Threads,
    override_spec,
)
from crossfuse.commands.process import main
from crossfuse.commands.profile import profile
from crossfuse.commands.serve import map_command, package, serve
from crossfuse.commands.verify import verify
from crossfuse.errors import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from crossfuse import __version__

        typer.echo(f"crossfuse {__version__}")
        raise typer.Exit


@app.callback()
def crossfuse(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Deploy PyTorch cross-attention models, with proof: fused, verified, and run without
    PyTorch."""


@app.command()
def models(as_json: Json = False) -> None:
    """List the zoo, one line each."""
    from crossfuse.commands.output import Output
    from crossfuse.models.registry import SIZES, ZOO

    output = Output(as_json=as_json)
    width = max(map(len, ZOO))

    def render() -> None:
        for entry in ZOO.values():
            output.line(f"{entry.name:{width}}  {entry.summary} ({entry.published})")

    output.result([asdict(entry) | {"sizes": SIZES} for entry in ZOO.values()], render)


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A zoo name, hf:FOLDER-OR-ID, package.module:factory or path/file.py:factory "
            "(returns a ModelSpec), or "
            "model.onnx."
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The bundle's folder.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="onnx, ort-cpu, ort-cuda, tensorrt, tensorrt-rtx; repeat."),
    ] = None,
    precision: Precision = None,
    io_dtype: IoDtype = None,
    sm: Capabilities = None,
    profile_shapes: Profiles = None,
    context: Annotated[
        list[str] | None, typer.Option("--context", help="An input that changes rarely; repeat.")
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            "--dynamic", metavar="INPUT:AXIS=NAME[:MIN:MAX]", help="A dynamic axis; repeat."
        ),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Of a zoo model: tiny or published.")
    ] = "published",
    seed: Annotated[int, typer.Option("--seed", help="Of a zoo model's random weights.")] = 0,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Folder of a transformers checkpoint for a zoo model."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Of an hf: source: a pipeline's task, or a class name."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with an hf: checkpoint."),
    ] = False,
    allow_missing: AllowMissing = False,
    example: Annotated[
        list[Path] | None,
        typer.Option(
            "--example",
            metavar="FILE.npz",
            help="Real inputs, arrays by input name: targets are compared and calibrated on them, "
            "too. The first gives a "
            "model.onnx its example inputs; repeat.",
        ),
    ] = None,
    drop_output: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-output", metavar="NAME", help="An output to leave out, * for any text; repeat."
        ),
    ] = None,
    decode: Annotated[
        str | None,
        typer.Option(
            "--decode", metavar="INPUT", help="The ids of a model that decodes token by token."
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Don't split, although the source names context inputs.")
    ] = False,
    allow_unfused: AllowUnfused = False,
    as_json: Json = False,
) -> None:
    """Export a model to a bundle: fused, lowered, and checked against eager PyTorch."""
    from crossfuse.api import export as pipeline
    from crossfuse.commands.output import Output

    output = Output(as_json=as_json)
    of_source: dict[str, Any] = {
        "size": size,
        "seed": seed,
        "checkpoint": checkpoint,
        "task": task,
        "trust_remote_code": trust_remote_code,
        "allow_missing": allow_missing,
        "example": example or [],
    }
    with output.progress() as step:
        step("loading PyTorch")
        resolved: Any = source
        if context or dynamic or decode:
            spec = pipeline.resolve(source, **of_source)
            resolved = override_spec(spec, context or [], dynamic or [], decode)
            of_source["example"] = []  # the spec has them
        bundle = pipeline.export(
            resolved,
            out,
            target or ["ort-cpu"],
            precision=precision,
            io_dtype=io_dtype,
            compute_capabilities=sm or [],
            profile_shapes=profile_shapes or [],
            allow_unfused=allow_unfused,
            drop_outputs=drop_output or [],
            whole=whole,
            step=step,
            **of_source,
        )
    _show(output, bundle)


@app.command()
def build(
    bundle: BundlePath,
    target: Annotated[
        str, typer.Option("--target", help="onnx, ort-cpu, ort-cuda, tensorrt, tensorrt-rtx.")
    ],
    precision: Precision = None,
    io_dtype: IoDtype = None,
    sm: Capabilities = None,
    profile_shapes: Profiles = None,
    memory_limit: Annotated[
        int | None,
        typer.Option("--memory-limit", metavar="BYTES", help="Of an engine builder's workspace."),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--optimization-level", min=0, max=5, help="Of an engine builder.")
    ] = None,
    lean: Annotated[
        bool,
        typer.Option(
            "--lean",
            help="A TensorRT engine for the lean runtime and later versions of the same major.",
        ),
    ] = False,
    allow_unfused: AllowUnfused = False,
    as_json: Json = False,
) -> None:
    """Add a target to a bundle, checked as at export."""
    from crossfuse.api import export as pipeline
    from crossfuse.commands.output import Output

    output = Output(as_json=as_json)
    with output.progress() as step:
        built = pipeline.build(
            bundle,
            target,
            precision=precision,
            io_dtype=io_dtype,
            compute_capabilities=sm or [],
            profile_shapes=profile_shapes or [],
            memory_limit=memory_limit,
            optimization_level=optimization_level,
            lean=lean,
            allow_unfused=allow_unfused,
            step=step,
        )
    _show(output, built)


app.command()(verify)


@app.command()
def run(
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
    target: Annotated[
        str | None, typer.Option("--target", help="Where omitted, the best that runs here.")
    ] = None,
    provider: Provider = None,
    device: Device = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a bundle on inputs from files. Needs no PyTorch."""
    from crossfuse.commands.output import Output
    from crossfuse.core.npz import load_arrays, save_arrays
    from crossfuse.runtime import SessionOptions, load

    output = Output(as_json=as_json)
    if out and len(out) != len(inputs):
        raise InputError(
            "each --input needs its own --output", got=f"{len(inputs)} inputs, {len(out)} outputs"
        )
    results: list[dict[str, Any]] = []
    with load(
        bundle, target, SessionOptions(threads=threads, provider=provider, device_id=device)
    ) as session:
        encoded = None if context is None else session.encode(load_arrays(context))
        for i, file in enumerate(inputs):
            arrays = load_arrays(file)
            outputs = session.run(arrays) if encoded is None else session.query(encoded, arrays)
            if out:
                save_arrays(out[i], outputs)
            described = {
                n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in outputs.items()
            }
            results.append(
                {
                    "input": str(file),
                    "outputs": described,
                    "written_to": str(out[i]) if out else None,
                }
            )
        used = {"target": session.target, "provider": session.provider}

    def render() -> None:
        output.line(f"{used['target']} on {used['provider']}")
        for result in results:
            if len(results) > 1:
                output.line(f"{result['input']}:")
            for name, about in result["outputs"].items():
                output.line(f"{name}: {about['dtype']}{about['shape']}")
            if result["written_to"]:
                output.line(f"written to {result['written_to']}")

    single = (
        {k: v for k, v in results[0].items() if k != "input"}
        if len(results) == 1
        else {"results": results}
    )
    output.result({**used, **single}, render)


app.command()(profile)
app.command()(package)
app.command()(serve)
app.command("map")(map_command)


@app.command()
def inspect(bundle: BundlePath, as_json: Json = False) -> None:
    """Show a bundle: boundary, files, fusion ledger, parity. Checks every file's hash."""
    from crossfuse.bundle.store import open_bundle
    from crossfuse.commands.output import Output

    opened = open_bundle(bundle)
    opened.verified(opened.manifest.files)
    output = Output(as_json=as_json)

    def render() -> None:
        output.boundary(opened)
        output.ledger(opened.ledger, opened.targets)
        for name, entry in opened.manifest.targets.items():
            output.target(name, entry)
            if entry.parity is not None:
                output.parity(dict(entry.parity))

    output.result(json.loads(opened.manifest.dumps()), render)


def _show(output: Any, bundle: Any) -> None:
    def render() -> None:
        output.ledger(bundle.ledger, bundle.targets)
        if "context" in bundle.manifest.stages:
            output.split(bundle.manifest)
        for name, entry in bundle.manifest.targets.items():
            output.target(name, entry)
            output.parity(dict(entry.parity))
        output.line(f"bundle written to {bundle.path}")
        output.weights(bundle.manifest)

    output.result(json.loads(bundle.manifest.dumps()) | {"path": str(bundle.path)}, render)
