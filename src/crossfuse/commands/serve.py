"""The commands ``crossfuse package``, ``serve`` and ``map``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossfuse.commands.options import BundlePath, Json, Threads
from crossfuse.core.outputs import write_text
from crossfuse.errors import unknown

__all__ = ["map_command", "package", "serve"]

Target = Annotated[
    str | None, typer.Option("--target", help="Where omitted, the best that runs here.")
]
Name = Annotated[
    str | None, typer.Option("--name", help="Of the model in URLs; where omitted, the bundle's.")
]
CacheMb = Annotated[
    int,
    typer.Option(
        "--cache-mb", min=0, help="Megabytes of kept contexts; 0 encodes for every request."
    ),
]
MaxRows = Annotated[
    int, typer.Option("--max-rows", min=1, help="Queries of several requests in one call, at most.")
]
Merge = Annotated[
    bool, typer.Option("--merge/--no-merge", help="Whether requests may share a call.")
]
AllowNan = Annotated[bool, typer.Option("--allow-nan", help="Take inputs that hold NaN.")]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", min=1, help="Largest first axis of an input.")
]
Cpus = Annotated[
    float, typer.Option("--num-cpus", min=0, help="That each reserves; also its threads.")
]
Gpus = Annotated[float, typer.Option("--num-gpus", min=0, help="That each reserves.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of a running Ray cluster; where omitted, a Ray of its own."),
]


def package(
    bundle: BundlePath,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="REPOSITORY", help="A model repository; its others stay."
        ),
    ],
    platform: Annotated[str, typer.Option("--for", help="triton.")] = "triton",
    target: Target = None,
    name: Name = None,
    instances: Annotated[
        int, typer.Option("--instances", min=1, help="Copies, each with a cache of its own.")
    ] = 1,
    cache_mb: CacheMb = 1000,
    max_rows: MaxRows = 64,
    merge: Merge = True,
    queue_ms: Annotated[
        float, typer.Option("--batch-wait-ms", min=0, help="How long a request waits for others.")
    ] = 2.0,
    native: Annotated[
        bool, typer.Option("--native/--no-native", help="Add models of Triton's own backends.")
    ] = True,
    max_batch: MaxBatch = 1024,
    allow_nan: AllowNan = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a model repository for NVIDIA Triton Inference Server of a bundle."""
    from crossfuse.commands.output import Output
    from crossfuse.serve.limits import Limits
    from crossfuse.serve.load_engine import EngineOptions
    from crossfuse.serve.triton.repository import TritonOptions, write_repository

    if platform != "triton":
        raise unknown("a platform isn't known", platform, ["triton"], where="--for")
    engine = EngineOptions(
        target=target, threads=threads, cache_mb=cache_mb, merge=merge, max_rows=max_rows
    )
    limits = Limits(max_batch=max_batch, allow_nan=allow_nan)
    options = TritonOptions(name, engine, limits, instances, queue_ms, native)
    models = write_repository(bundle, out, options)
    output = Output(as_json=as_json)
    output.result(
        {"repository": str(out), "models": models},
        lambda: output.line(f"{', '.join(models)} written to {out}"),
    )


def serve(
    bundle: BundlePath,
    target: Target = None,
    name: Name = None,
    host: Annotated[str, typer.Option("--host", help="To listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="To listen on.")] = 8000,
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=1, max=65535, help="Of Prometheus metrics.")
    ] = 8002,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Processes, each with a session and a cache.")
    ] = 1,
    max_replicas: Annotated[
        int, typer.Option("--max-replicas", min=0, help="Scale up to this many by load.")
    ] = 0,
    num_cpus: Cpus = 1.0,
    num_gpus: Gpus = 0.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Requests that a replica answers at once.")
    ] = 8,
    batch_wait_ms: Annotated[
        float, typer.Option("--batch-wait-ms", min=0, help="How long a request waits for others.")
    ] = 2.0,
    cache_mb: CacheMb = 1000,
    max_rows: MaxRows = 64,
    merge: Merge = True,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Of a request's body.")] = 64
    << 20,
    max_batch: MaxBatch = 1024,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Requests that wait; more are refused.")
    ] = 256,
    allow_nan: AllowNan = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds until a request is given up.")
    ] = 60.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds to finish what was taken, at SIGTERM.")
    ] = 30.0,
    log_format: Annotated[str, typer.Option("--log-format", help="json or text.")] = "json",
    address: Address = None,
    emit_config: Annotated[
        Path | None,
        typer.Option(
            "--emit-config",
            metavar="FILE.yaml",
            help="Write Serve's config for a cluster, and stop.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve a bundle with Ray Serve over the Open Inference Protocol (HTTP), until SIGTERM or
    Ctrl-C."""
    from crossfuse.bundle.store import open_bundle
    from crossfuse.commands.output import Output
    from crossfuse.serve.cluster import connected, local_ray
    from crossfuse.serve.limits import Limits
    from crossfuse.serve.load_engine import EngineOptions
    from crossfuse.serve.rayserve.options import ServeOptions

    output = Output(as_json=as_json)
    opened = open_bundle(bundle)
    options = ServeOptions(
        bundle=str(opened.path.resolve()),
        name=name or opened.manifest.name,
        engine=EngineOptions(target=target, cache_mb=cache_mb, merge=merge, max_rows=max_rows),
        limits=Limits(max_bytes, max_batch, max_queue, allow_nan),
        replicas=replicas,
        max_replicas=max_replicas,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        batch_size=batch_size,
        batch_wait_ms=batch_wait_ms,
        timeout_s=timeout,
        drain_s=drain,
        log_format=log_format,
    )
    if emit_config is not None:
        import yaml

        from crossfuse.serve.rayserve.app import config

        write_text(
            emit_config, yaml.safe_dump(config(options, host=host, port=port), sort_keys=False)
        )
        output.result(
            {"config": str(emit_config)}, lambda: output.line(f"config written to {emit_config}")
        )
        return
    most = max(replicas, max_replicas)
    url = f"http://{host}:{port}/v2/models/{options.name}"
    about = {"url": url, "replicas": replicas}
    if address is not None:
        with connected(address):
            from crossfuse.serve.rayserve.run import deploy

            deploy(options, host, port)
        output.result(about, lambda: output.line(f"deployed to the cluster at {address}: {url}"))
        return
    with local_ray(cpus=max(1.0, num_cpus * most), metrics_port=metrics_port):
        from crossfuse.serve.rayserve.run import asked_to_stop, running

        about["metrics"] = f"http://127.0.0.1:{metrics_port}/metrics"
        with asked_to_stop() as asked, running(options, host, port):
            output.result(
                about,
                lambda: output.line(f"serving {url}; metrics on port {metrics_port}; Ctrl-C stops"),
            )
            asked.wait()


def map_command(
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
    target: Target = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes, each with a session.")
    ] = 1,
    num_cpus: Cpus = 1.0,
    num_gpus: Gpus = 0.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Rows answered at once.")
    ] = 16,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", min=1, help="Rows that are done as a whole.")
    ] = 64,
    cache_mb: CacheMb = 1000,
    merge: Merge = True,
    allow_nan: AllowNan = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Answer every row of a folder or of Parquet files with Ray Data; run again, it goes on where
    it was killed."""
    from crossfuse.commands.output import Output
    from crossfuse.serve.bulk.job import FAILED
    from crossfuse.serve.bulk.run import MapOptions, map_rows
    from crossfuse.serve.cluster import connected, local_ray
    from crossfuse.serve.load_engine import EngineOptions

    output = Output(as_json=as_json)
    engine = EngineOptions(target=target, cache_mb=cache_mb, merge=merge)
    options = MapOptions(engine, workers, num_cpus, num_gpus, batch_size, shard_rows, allow_nan)
    # One CPU more, which Ray Data's own tasks need beside the workers.
    started = (
        local_ray(cpus=workers * max(1.0, num_cpus) + 1) if address is None else connected(address)
    )
    with started, output.progress() as step:
        report = map_rows(bundle, source, out, options, step)

    def render() -> None:
        output.line(
            f"{report.rows} rows ({report.done_before} done before), {report.failed} failed; "
            f"answers in {report.output}"
        )
        if report.failed:
            output.line(f"reasons in {out / FAILED}")

    output.result(report.to_json(), render)
    raise typer.Exit(int(report.failed > 0))
