"""A server of a bundle as `crossfuse serve` has it, but for Ray: its front and its ingress on
uvicorn, and one engine in place of replicas.

``python asgi_server.py BUNDLE PORT``
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request as HttpRequest

from crossfuse.core.processes import end_with_parent
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.rayserve.front import Front, Shares
from crossfuse.serve.rayserve.ingress import Ingress
from crossfuse.serve.rayserve.options import ServeOptions
from crossfuse.serve.rayserve.replica import said
from crossfuse.serve.request_engine import Request


class Handle:
    """A deployment's handle whose one replica is an engine in this process."""

    def __init__(self, options: ServeOptions) -> None:
        self._engine = open_engine(options.bundle, options.engine, limits=options.limits)
        self._pool = ThreadPoolExecutor(1)

    def options(self, multiplexed_model_id: str) -> Handle:
        return self

    @property
    def answer(self) -> Any:
        return Method(self._answer)

    @property
    def ready(self) -> Any:
        return Method(self._ready)

    async def _ready(self) -> bool:
        return True

    async def _answer(self, inputs: Any, context_id: str | None, key: bytes | None) -> Any:
        request = [Request(inputs, context_id, key)]
        loop = asyncio.get_running_loop()
        (answer,) = await loop.run_in_executor(self._pool, self._engine.answer, request)
        return said(answer)


class Method:
    def __init__(self, function: Any) -> None:
        self.remote = function


def main() -> None:
    """Serve until SIGTERM."""
    end_with_parent()
    bundle, port = sys.argv[1:]
    options = ServeOptions(bundle, "m", EngineOptions("ort-cpu", threads=1))
    ingress = Ingress(options.to_json(), Handle(options))  # type: ignore[arg-type]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = await ingress(HttpRequest(scope, receive))
        await response(scope, receive, send)

    front = Front(app, "", Shares(options.limits, 4 * options.batch_size, options.timeout_s))
    uvicorn.run(front, port=int(port), log_level="critical", lifespan="off", timeout_keep_alive=90)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
