"""The commands ``crossfuse package`` and ``crossfuse serve``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crossfuse.commands.options import (
    RUN,
    BuiltTarget,
    BundlePath,
    Json,
    PublicKey,
    Signature,
    Threads,
    TrustEngines,
)
from crossfuse.commands.serve_options import (
    REQUESTS,
    Address,
    AllowNan,
    BodyTimeout,
    CacheMb,
    Cpus,
    Gpus,
    MaxBatch,
    MaxJsonBytes,
    MaxRows,
    Merge,
    Name,
    Slots,
    Wait,
)
from crossfuse.core.files import write_text
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from crossfuse.bundle.store import Bundle
    from crossfuse.commands.output import Output
    from crossfuse.serve.rayserve.options import ServeOptions

__all__ = ["package", "serve"]

_ADDRESSES = "Addresses"
_SLOTS = 8


def package(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="REPOSITORY", help="A model repository; its others stay."
        ),
    ],
    platform: Annotated[
        Literal["triton"], typer.Option("--for", help="The server that the repository is for.")
    ] = "triton",
    target: BuiltTarget = None,
    name: Name = None,
    instances: Annotated[
        int, typer.Option("--instances", min=1, help="Copies, each with a cache of its own.")
    ] = 1,
    cache_mb: CacheMb = 1000,
    max_rows: MaxRows = 64,
    merge: Merge = True,
    queue_ms: Wait = 2.0,
    native: Annotated[
        bool, typer.Option("--native/--no-native", help="Add models of Triton's own backends.")
    ] = True,
    max_batch: MaxBatch = 1024,
    allow_nan: AllowNan = False,
    slots: Slots = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a model repository for NVIDIA Triton Inference Server of a bundle."""
    from crossfuse.commands.output import Output
    from crossfuse.serve.limits import Limits
    from crossfuse.serve.load_engine import EngineOptions
    from crossfuse.serve.triton.repository import TritonOptions, write_repository

    engine = EngineOptions(
        target=target, threads=threads, cache_mb=cache_mb, merge=merge, max_rows=max_rows
    )
    limits = Limits(max_batch=max_batch, allow_nan=allow_nan)
    options = TritonOptions(
        name, engine, limits, instances, queue_ms, native, _SLOTS if slots is None else slots
    )
    models = write_repository(bundle, out, options)
    output = Output(as_json=as_json)
    output.result(
        {"repository": str(out), "models": models},
        lambda: output.line(f"{', '.join(models)} written to {out}"),
    )


def serve(  # noqa: PLR0913 -- a command: its parameters are its options
    bundle: BundlePath,
    target: BuiltTarget = None,
    name: Name = None,
    host: Annotated[
        str, typer.Option("--host", help="To listen on.", rich_help_panel=_ADDRESSES)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", min=1, max=65535, help="To listen on.", rich_help_panel=_ADDRESSES),
    ] = 8000,
    metrics_port: Annotated[
        int,
        typer.Option(
            "--metrics-port",
            min=1,
            max=65535,
            help="Of Prometheus metrics.",
            rich_help_panel=_ADDRESSES,
        ),
    ] = 8002,
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas",
            min=1,
            help="Processes, each with a session and a cache.",
            rich_help_panel=RUN,
        ),
    ] = 1,
    max_replicas: Annotated[
        int,
        typer.Option(
            "--max-replicas",
            min=0,
            help="Scale up to this many by load.",
            rich_help_panel=RUN,
        ),
    ] = 0,
    num_cpus: Cpus = 1.0,
    num_gpus: Gpus = 0.0,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            help="Requests that a replica answers at once.",
            rich_help_panel=REQUESTS,
        ),
    ] = 8,
    batch_wait_ms: Wait = 2.0,
    slots: Slots = None,
    cache_mb: CacheMb = 1000,
    max_rows: MaxRows = 64,
    merge: Merge = True,
    max_bytes: Annotated[
        int,
        typer.Option("--max-bytes", min=1, help="Of a request's body.", rich_help_panel=REQUESTS),
    ] = 64 << 20,
    max_batch: MaxBatch = 1024,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue",
            min=1,
            help="Requests that wait; more are refused.",
            rich_help_panel=REQUESTS,
        ),
    ] = 256,
    allow_nan: AllowNan = False,
    max_json_bytes: MaxJsonBytes = 8 << 20,
    body_timeout: BodyTimeout = 30.0,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.1,
            help="Seconds until a request is given up.",
            rich_help_panel=REQUESTS,
        ),
    ] = 60.0,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            min=0,
            help="Seconds to finish what was taken, at SIGTERM.",
            rich_help_panel=REQUESTS,
        ),
    ] = 30.0,
    log_format: Annotated[
        Literal["json", "text"], typer.Option("--log-format", help="Of the server's log.")
    ] = "json",
    trust_engines: TrustEngines = False,
    public_key: PublicKey = None,
    signature: Signature = None,
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
    """Serve a bundle with Ray Serve over the Open Inference Protocol (HTTP).

    Until SIGTERM or Ctrl-C.
    """
    from crossfuse.bundle.store import open_bundle
    from crossfuse.commands.output import Output
    from crossfuse.serve.limits import Limits
    from crossfuse.serve.load_engine import EngineOptions
    from crossfuse.serve.rayserve.options import ServeOptions

    output = Output(as_json=as_json)
    opened = open_bundle(bundle)
    options = ServeOptions(
        bundle=str(opened.path.resolve()),
        name=name or opened.manifest.name,
        engine=EngineOptions(
            target=target,
            cache_mb=cache_mb,
            merge=merge,
            max_rows=max_rows,
            trust_engines=trust_engines,
            public_key=_whole(public_key),
            signature=_whole(signature),
        ),
        limits=Limits(
            max_bytes,
            max_batch,
            max_queue,
            allow_nan,
            max_json_bytes=max_json_bytes,
            body_seconds=body_timeout,
        ),
        replicas=replicas,
        max_replicas=max_replicas,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        batch_size=batch_size,
        batch_wait_ms=batch_wait_ms,
        slots=_slots(opened, slots),
        timeout_s=timeout,
        drain_s=drain,
        log_format=log_format,
    )
    served = _Served(output, opened, options, host, port)
    if emit_config is not None:
        served.write_config(emit_config)
    elif address is not None:
        served.deploy(address)
    else:
        served.run(metrics_port)


def _slots(bundle: Bundle, asked: int | None) -> int:
    """How many sequences a replica generates at once.

    Raises:
        InputError: some are asked for, and the bundle can't.
    """
    from crossfuse.serve.generating import can_generate

    able = can_generate(bundle.manifest)
    if asked and not able:
        raise InputError(
            "the bundle generates no sequences side by side",
            where="--slots",
            got=asked,
            do="Export a model that decodes, with this version of crossfuse, or leave --slots out",
        )
    return (_SLOTS if able else 0) if asked is None else asked


def _whole(path: Path | None) -> str | None:
    """A path as processes in other folders find it."""
    return None if path is None else str(path.absolute())


@dataclass(frozen=True)
class _Served:
    """An application, and the address at which it is to be."""

    output: Output
    bundle: Bundle
    options: ServeOptions
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v2/models/{self.options.name}"

    def write_config(self, file: Path) -> None:
        """Write Ray Serve's config for a cluster."""
        import yaml

        from crossfuse.serve.rayserve.app import config

        about = config(self.options, host=self.host, port=self.port)
        write_text(file, yaml.safe_dump(about, sort_keys=False))
        self.output.result(
            {"config": str(file)}, lambda: self.output.line(f"config written to {file}")
        )

    def deploy(self, address: str) -> None:
        """Hand the application to a running cluster."""
        from crossfuse.serve.cluster import connected

        with connected(address):
            from crossfuse.serve.rayserve.run import deploy

            deploy(self.options, self.host, self.port)
        self.output.result(
            {"url": self.url, "replicas": self.options.replicas},
            lambda: self.output.line(f"deployed to the cluster at {address}: {self.url}"),
        )

    def run(self, metrics_port: int) -> None:
        """Serve from a Ray of its own until the process is asked to stop."""
        from crossfuse.serve.cluster import local_ray, require_free
        from crossfuse.serve.load_engine import ready_target
        from crossfuse.serve.rayserve.front import environment

        options = self.options
        ready_target(self.bundle, options.replicas_engine)
        require_free(self.host, self.port)
        require_free("127.0.0.1", metrics_port)
        most = max(options.replicas, options.max_replicas)
        with local_ray(
            cpus=max(1.0, options.num_cpus * most),
            metrics_port=metrics_port,
            environment=environment(options),
        ):
            from crossfuse.serve.rayserve.run import asked_to_stop, running, wait_for_metrics

            metrics = f"http://127.0.0.1:{metrics_port}/metrics"
            about = {"url": self.url, "replicas": options.replicas, "metrics": metrics}
            about |= {"slots": options.slots} if options.slots else {}
            text = f"serving {self.url}; metrics on port {metrics_port}; Ctrl-C stops"
            with asked_to_stop() as asked, running(options, self.host, self.port):
                wait_for_metrics(metrics)
                self.output.result(about, lambda: self.output.line(text))
                asked.wait()
