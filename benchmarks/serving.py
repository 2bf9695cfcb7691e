"""A server with context reuse beside the same server without, and beside the bare session.

    python benchmarks/serving.py [--json FILE] [--work FOLDER] [--rounds N] [--callers N] [--tiny]

BLIP-base for retrieval (384×384 images), 16 queries per image, each a request of its own with the
image in it. Both servers are ``crossfuse serve`` on this machine with one replica and all its
cores; the callers are closed-loop. Every round asks both servers and the bare session about images
that none has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

import crossfuse
from crossfuse import runtime
from crossfuse.profiling.environment import environment
from crossfuse.runtime.options import SessionOptions
from crossfuse.serve.open_inference import DATATYPES

HERE = Path(__file__).parent
QUERIES, TOKENS = 16, 20
Arrays = dict[str, np.ndarray]


def free_port() -> int:
    """A port of the loopback interface."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def server(bundle: Path, *options: str) -> Iterator[int]:
    """``crossfuse serve``; its port."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "crossfuse",
        "serve",
        str(bundle),
        "--name",
        "m",
        "--port",
        str(port),
        *options,
    ]
    command += ["--metrics-port", str(free_port()), "--num-cpus", str(os.cpu_count())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                if triton.InferenceServerClient(f"127.0.0.1:{port}").is_model_ready("m"):
                    break
            except (OSError, InferenceServerException):
                pass
            time.sleep(0.5)
        else:
            raise SystemExit(f"crossfuse serve ended with {process.returncode}")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def requests_of(session: runtime.Session, images: int, seed: int) -> list[Arrays]:
    """``QUERIES`` requests for each of some new images."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        image = None
        for _ in range(QUERIES):
            arrays = {}
            for spec in session.inputs:
                shape = [
                    TOKENS
                    if isinstance(size, str) and axis
                    else 1
                    if isinstance(size, str)
                    else size
                    for axis, size in enumerate(spec.shape)
                ]
                if spec.dtype == "float32":
                    image = (
                        rng.standard_normal(shape).astype(np.float32) if image is None else image
                    )
                    arrays[spec.name] = image
                elif "mask" in spec.name:
                    arrays[spec.name] = np.ones(shape, spec.dtype)
                else:
                    arrays[spec.name] = rng.integers(1000, 30_000, shape).astype(spec.dtype)
            made.append(arrays)
    return made


def over_http(port: int, requests: list[Arrays], callers: int) -> float:
    """Seconds until closed-loop callers have all answers; they share the images."""

    def ask(own: list[Arrays]) -> None:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=600)
        for arrays in own:
            inputs = []
            for name, array in arrays.items():
                tensor = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
                tensor.set_data_from_numpy(array)
                inputs.append(tensor)
            client.infer("m", inputs)

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        for _ in pool.map(ask, [requests[n::callers] for n in range(callers)]):
            pass
    return time.perf_counter() - start


def bare(session: runtime.Session, requests: list[Arrays]) -> float:
    """Seconds of the session alone: each image encoded once, each query by itself."""
    names = [spec.name for spec in session.stages["context"].inputs]
    start = time.perf_counter()
    for i, arrays in enumerate(requests):
        if i % QUERIES == 0:
            context = session.encode(**{name: arrays[name] for name in names})
        session.query(
            context, **{name: array for name, array in arrays.items() if name not in names}
        )
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("benchmark-bundles"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--images", type=int, default=2, help="in each round")
    arguments = parser.parse_args()
    bundle = arguments.work / "blip_retrieval"
    if not bundle.exists():
        crossfuse.export(f"{HERE / 'cases.py'}:blip_retrieval", bundle, targets=["ort-cpu"])
    seconds: dict[str, list[float]] = {
        "reuse": [],
        "no reuse": [],
        "reuse, one caller": [],
        "session": [],
    }
    with ExitStack() as stack:
        session = stack.enter_context(
            runtime.load(bundle, "ort-cpu", SessionOptions(threads=os.cpu_count()))
        )
        reuse = stack.enter_context(server(bundle))
        without = stack.enter_context(server(bundle, "--cache-mb", "0"))
        ways: dict[str, Callable[[list[Arrays]], float]] = {
            "reuse": lambda requests: over_http(reuse, requests, arguments.callers),
            "no reuse": lambda requests: over_http(without, requests, arguments.callers),
            "reuse, one caller": lambda requests: over_http(reuse, requests, 1),
            "session": lambda requests: bare(session, requests),
        }
        for number in range(arguments.rounds):
            for i, (name, way) in enumerate(ways.items()):
                requests = requests_of(session, arguments.images, seed=number * 10 + i)
                seconds[name].append(way(requests) / len(requests))
                print(
                    f"round {number + 1}: {name}: {1 / seconds[name][-1]:.2f} answers per second",
                    flush=True,
                )
    ratios = [b / a for a, b in zip(seconds["reuse"], seconds["no reuse"], strict=True)]
    overhead = [
        b / a for a, b in zip(seconds["session"], seconds["reuse, one caller"], strict=True)
    ]
    said = {
        "throughput with reuse over without": ratios,
        "one caller over HTTP over the bare session": overhead,
    }
    for what, values in said.items():
        print(f"{what}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    if arguments.json is not None:
        result = {
            "seconds_per_answer": seconds,
            "reuse_ratio": ratios,
            "http_over_session": overhead,
            "environment": environment(),
        }
        arguments.json.write_text(
            json.dumps(
                result | {"callers": arguments.callers, "queries_per_image": QUERIES}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
