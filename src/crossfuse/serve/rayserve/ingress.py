"""The ingress: HTTP of the Open Inference Protocol on one side, replicas on the other."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from crossfuse import __version__
from crossfuse.bundle.store import open_bundle
from crossfuse.core.tensors import names_of
from crossfuse.core.terminal import shown_traceback
from crossfuse.errors import CrossfuseError
from crossfuse.runtime.context_cache import content_key
from crossfuse.serve.load_engine import boundary
from crossfuse.serve.metrics import SECONDS
from crossfuse.serve.open_inference import (
    BINARY_HEADER,
    Call,
    encode_outputs,
    parse_call,
    tensor_metadata,
)
from crossfuse.serve.rayserve.options import ServeOptions

__all__ = ["Ingress", "home_of"]

_LOG = logging.getLogger("ray.serve")
_INLINE = 1 << 16
"""Bodies larger than this are parsed beside the event loop."""


class Refusal(Exception):  # noqa: N818 - it isn't an error of the program
    """An answer that is not outputs."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Ingress:
    """Parses, limits, routes and answers; computes nothing."""

    def __init__(self, options: Mapping[str, Any], replica: DeploymentHandle) -> None:
        self._options = ServeOptions.from_json(options)
        self._replica = replica
        manifest = open_bundle(self._options.bundle).manifest
        context, queries, outputs = boundary(manifest)
        self._context = names_of(context)
        self._metadata = {
            "name": self._options.name,
            "versions": ["1"],
            "platform": "crossfuse",
            "inputs": tensor_metadata((*context, *queries)),
            "outputs": tensor_metadata(outputs),
        }
        self._open = 0
        self._draining = False
        self._requests = metrics.Counter(
            "crossfuse_requests", "Requests by HTTP status", tag_keys=("status",)
        )
        bounds = list(SECONDS)
        self._seconds = metrics.Histogram(
            "crossfuse_request_seconds", "From head to answer", boundaries=bounds
        )
        self._queue = metrics.Gauge("crossfuse_open_requests", "Requests that are not answered yet")

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve calls this at start and whenever the deployment's ``user_config`` changes."""
        self._draining = bool(config.get("draining"))

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request; whatever happens, the client gets a status and one paragraph."""
        parts = [part for part in request.url.path.split("/") if part]
        match (request.method, parts):
            case ("GET", ["v2"]):
                return JSONResponse(
                    {
                        "name": "crossfuse",
                        "version": __version__,
                        "extensions": ["binary_tensor_data"],
                    }
                )
            case ("GET", ["v2", "health", "live"]):
                return Response()
            case ("GET", ["v2", "health", "ready"]):
                return Response(status_code=200 if await self._ready() else 503)
            case (method, ["v2", "models", name, *rest]):
                if rest[:1] == ["versions"] and len(rest) > 1:
                    if rest[1] != "1":
                        return _refused(404, f"the model has no version {rest[1]!r}; it has 1.")
                    rest = rest[2:]
                if name != self._options.name:
                    return _refused(
                        404, f"there is no model {name!r}; there is {self._options.name!r}."
                    )
                if (method, rest) == ("GET", []):
                    return JSONResponse(self._metadata)
                if (method, rest) == ("GET", ["ready"]):
                    return Response(status_code=200 if await self._ready() else 503)
                if (method, rest) == ("POST", ["infer"]):
                    return await self._counted(request)
        return _refused(404, f"{request.method} {request.url.path} is not known here.")

    async def open_requests(self) -> int:
        """How many are not answered yet."""
        return self._open

    async def _counted(self, request: Request) -> Response:
        start = time.perf_counter()
        self._open += 1
        self._queue.set(self._open)
        status = 500
        try:
            response = await self._infer(request)
            status = response.status_code
        except Refusal as refusal:
            response = _refused(refusal.status, str(refusal))
            status = refusal.status
        except CrossfuseError as error:
            response = _refused(400, str(error))
            status = 400
        except ClientDisconnect:
            response = _refused(400, "the client went away.")
            status = 499
        except Exception as error:  # noqa: BLE001
            # The last line of defence: the client must not see a traceback, the log must.
            _LOG.error("a request failed unexpectedly\n%s", shown_traceback(error))
            response = _refused(500, "the server failed; its log says why.")
        finally:
            self._open -= 1
            self._queue.set(self._open)
            self._requests.inc(tags={"status": str(status)})
            self._seconds.observe(time.perf_counter() - start)
        return response

    async def _infer(self, request: Request) -> Response:
        if self._draining:
            raise Refusal(503, "the server is shutting down.")
        if self._open > self._options.limits.max_queue:
            raise Refusal(
                503,
                f"the queue is full: {self._options.limits.max_queue} requests wait. Try again "
                "later.",
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "compressed bodies aren't supported.")
        body = await self._body(request)
        header = request.headers.get(BINARY_HEADER)
        if header is not None and not header.isdigit():
            raise Refusal(400, f"{BINARY_HEADER} is no number.")
        length = None if header is None else int(header)
        call, key = (
            self._read(body, length)
            if len(body) <= _INLINE
            else await asyncio.to_thread(self._read, body, length)
        )
        status, answer = await self._ask(call, key)
        if status != 200:
            raise Refusal(status, str(answer))
        content, json_length = encode_outputs(answer, call, model=self._options.name)
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(
            content,
            headers={BINARY_HEADER: str(json_length)},
            media_type="application/octet-stream",
        )

    async def _body(self, request: Request) -> bytes:
        most = self._options.limits.max_bytes
        too_large = Refusal(413, f"the body is larger than {most} bytes.")
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise too_large
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise too_large
            chunks.append(chunk)
        return b"".join(chunks)

    def _read(self, body: bytes, length: int | None) -> tuple[Call, bytes | None]:
        """The call, and the digest of its contexts."""
        call = parse_call(body, length)
        given = {name: call.inputs[name] for name in self._context if name in call.inputs}
        return call, content_key(given) if given else None

    async def _ask(self, call: Call, key: bytes | None) -> tuple[int, Any]:
        home = home_of(call.context_id, key)
        handle = self._replica.options(multiplexed_model_id=home) if home else self._replica
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    answer: tuple[int, Any] = await handle.answer.remote(
                        dict(call.inputs), call.context_id, key
                    )
                    return answer
            except TimeoutError as error:
                raise Refusal(504, f"no answer within {self._options.timeout_s:g} s.") from error
            except BackPressureError as error:
                raise Refusal(503, "the queue is full. Try again later.") from error
            except (RayActorError, DeploymentUnavailableError) as error:
                # An answer depends on the request alone, so it may be asked for again; once, lest
                # it kills replica by replica.
                _LOG.warning(
                    "a replica died or left while it had a request (attempt %d): %s",
                    attempt,
                    type(error).__name__,
                )
        raise Refusal(503, "the replica that had the request died. Try again later.")

    async def _ready(self) -> bool:
        if self._draining:
            return False
        try:
            async with asyncio.timeout(5):
                return bool(await self._replica.ready.remote())
        except (TimeoutError, RayActorError, BackPressureError, DeploymentUnavailableError):
            return False


def home_of(context_id: str | None, key: bytes | None) -> str:
    """What routes a request: a digest of its context's name, or of the inputs; nothing where it has
    neither.

    Serve carries it in headers and tells it in logs, so a client's own text isn't it.
    """
    if context_id is not None:
        return hashlib.blake2b(
            context_id.encode("utf-8", "surrogatepass"), digest_size=20
        ).hexdigest()
    return "" if key is None else key.hex()


def _refused(status: int, text: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(
        json.dumps({"error": text}),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
