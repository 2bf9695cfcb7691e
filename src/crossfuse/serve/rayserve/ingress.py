"""The ingress: HTTP of the Open Inference Protocol on one side, replicas on the other."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from crossfuse.bundle.store import open_bundle
from crossfuse.core.tensors import names_of
from crossfuse.runtime.context_cache import content_key
from crossfuse.serve.generating import Asking, whole_of
from crossfuse.serve.load_engine import boundary
from crossfuse.serve.metrics import SECONDS
from crossfuse.serve.open_inference import BINARY_HEADER, Call, tensor_metadata
from crossfuse.serve.rayserve.apart import LONG, Apart
from crossfuse.serve.rayserve.arrivals import Arrivals, Gone, Refused
from crossfuse.serve.rayserve.events import EventStream
from crossfuse.serve.rayserve.loopback import keep_on_loopback
from crossfuse.serve.rayserve.options import ServeOptions
from crossfuse.serve.rayserve.routes import Later, Refusal, answered, protocol_routes, status_of
from crossfuse.serve.request_engine import Request as Asked

__all__ = ["Ingress", "home_of"]

_LOG = logging.getLogger("ray.serve")
_DIGITS = 15
_LOST = (TimeoutError, BackPressureError, RayActorError, DeploymentUnavailableError)
_DIED = "the replica that had the request died. Try again later."
_ARRIVING = 2
"""Bodies that may arrive at once, in multiples of the queue."""


class Ingress:
    """Parses, limits, routes and answers; computes nothing."""

    def __init__(self, options: Mapping[str, Any], replica: DeploymentHandle) -> None:
        self._options = ServeOptions.from_json(options)
        self.name = self._options.name
        self._replica = replica
        manifest = open_bundle(self._options.bundle).manifest
        context, queries, outputs = boundary(manifest)
        self._context = names_of(context)
        self._metadata = {
            "name": self.name,
            "versions": ["1"],
            "platform": "crossfuse",
            "inputs": tensor_metadata((*context, *queries)),
            "outputs": tensor_metadata(outputs),
        }
        self._open = 0
        self._arriving = 0
        self._arrivals = Arrivals(self._options.limits)
        self._requests = metrics.Counter(
            "crossfuse_requests", "Requests by HTTP status", tag_keys=("status",)
        )
        bounds = list(SECONDS)
        self._seconds = metrics.Histogram(
            "crossfuse_request_seconds", "From head to answer", boundaries=bounds
        )
        self._queue = metrics.Gauge("crossfuse_open_requests", "Requests that are not answered yet")
        self._queue.set(0)
        self._apart = Apart(self._options.limits, self.name)
        self._app = protocol_routes(self)
        keep_on_loopback()

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request; whatever happens, the client gets a status and one paragraph."""
        return await answered(self._app, request)

    async def metadata(self, request: Request) -> Response:
        """Names, types and shapes of the model's tensors."""
        return JSONResponse(self._metadata)

    async def ready(self, request: Request) -> Response:
        """200 where requests would be answered, else 503."""
        return Response(status_code=200 if await self._ready() else 503)

    async def infer(self, request: Request) -> Response:
        """Outputs for the request's inputs; counted by status, whatever happens.

        Raises:
            Refusal: the server's queue is full, or the body is not what it takes.
            CrossfuseError: what is wrong with the inputs.
        """
        return await self._counted(self._infer, request)

    async def generate(self, request: Request) -> Response:
        """A sequence over the request's context, whole; counted by status, whatever happens.

        Raises:
            Refusal: as of `infer`, or a server that generates none.
            CrossfuseError: what is wrong with the inputs or the settings.
        """
        return await self._counted(self._generate, request)

    async def generate_stream(self, request: Request) -> Response:
        """As `generate`, as server-sent events while it comes; who goes away frees its slot."""
        done = self._begun()
        try:
            call, key = await self._call(request)
            events = self._events(call, key, whole=False)
            first = await anext(events)
        except BaseException as error:
            done(status_of(error))
            raise
        return Later(EventStream(first, events, self._about(call), done))

    async def _counted(
        self, answers: Callable[[Request], Awaitable[Response]], request: Request
    ) -> Response:
        done, status = self._begun(), 500
        try:
            response = await answers(request)
            status = response.status_code
        except Exception as error:
            status = status_of(error)
            raise
        finally:
            done(status)
        return response

    def _begun(self) -> Callable[[int], None]:
        """Count a request that isn't answered yet; what comes back is to be told its status."""
        start = time.perf_counter()
        self._open += 1
        self._queue.set(self._open)

        def done(status: int) -> None:
            self._open -= 1
            self._queue.set(self._open)
            self._requests.inc(tags={"status": str(status)})
            self._seconds.observe(time.perf_counter() - start)

        return done

    def _about(self, call: Call) -> dict[str, Any]:
        identity = {} if call.identity is None else {"id": call.identity}
        return {"model_name": self.name, "model_version": "1", **identity}

    async def _call(self, request: Request) -> tuple[Call, bytes | None]:
        """What is asked, and the digest of its contexts."""
        most = self._options.limits.max_queue
        if self._open - self._arriving > most or self._arriving > _ARRIVING * most:
            raise Refusal(503, f"the queue is full: {most} requests wait. Try again later.")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "compressed bodies aren't supported.")
        length = _whole(request, BINARY_HEADER)
        body = await self._body(request)
        call = await self._apart.parse(body, length)
        short = len(body) <= LONG
        key = self._key_of(call) if short else await asyncio.to_thread(self._key_of, call)
        return call, key

    async def _generate(self, request: Request) -> Response:
        call, key = await self._call(request)
        async with aclosing(self._events(call, key, whole=True)) as events:
            found = whole_of([event async for event in events])
        return JSONResponse({**self._about(call), **found})

    async def _events(
        self, call: Call, key: bytes | None, *, whole: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a sequence; a replica that dies before the first is replaced once."""
        if not self._options.slots:
            raise Refusal(404, f"{self.name!r} generates no sequences here.")
        asked = Asked(dict(call.inputs), call.context_id, key)
        asking = Asking(asked, call.text, call.parameters, whole)
        handle = self._handle(call, key).options(stream=True)
        end = time.monotonic() + self._options.timeout_s
        for attempt in (1, 2):
            stream, begun = handle.generate.remote(asking), False
            try:
                while True:
                    async with asyncio.timeout(end - time.monotonic()):
                        status, event = await anext(stream)
                    if status != 200:
                        raise Refusal(status, str(event))
                    begun = True
                    yield event
            except StopAsyncIteration:
                return
            except _LOST as error:
                refusal = self._lost(error, attempt)
                if refusal is not None or begun:
                    raise refusal or Refusal(503, _DIED) from error
            finally:
                stream.cancel()
        raise Refusal(503, _DIED)

    async def _infer(self, request: Request) -> Response:
        call, key = await self._call(request)
        status, answer = await self._ask(call, key)
        if status != 200:
            raise Refusal(status, str(answer))
        content, json_length = await self._apart.encode(answer, call)
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(
            content,
            headers={BINARY_HEADER: str(json_length)},
            media_type="application/octet-stream",
        )

    async def _body(self, request: Request) -> bytes:
        """The body, within its limits of size and time, also where no front stands before Serve.
        While it arrives, it waits for its client, and takes no place of those who wait for the
        model."""
        self._arriving += 1
        try:
            with self._arrivals.counted() as body:
                return await self._arrivals.receive(body, request.scope, request.receive)
        except Refused as refused:
            raise Refusal(refused.status, str(refused)) from refused
        except Gone as gone:
            raise ClientDisconnect from gone
        finally:
            self._arriving -= 1

    def _key_of(self, call: Call) -> bytes | None:
        """The digest of a call's contexts."""
        given = {name: call.inputs[name] for name in self._context if name in call.inputs}
        return content_key(given) if given else None

    def _handle(self, call: Call, key: bytes | None) -> DeploymentHandle:
        """To the context's home."""
        home = home_of(call.context_id, key)
        return self._replica.options(multiplexed_model_id=home) if home else self._replica

    async def _ask(self, call: Call, key: bytes | None) -> tuple[int, Any]:
        handle = self._handle(call, key)
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    answer: tuple[int, Any] = await handle.answer.remote(
                        dict(call.inputs), call.context_id, key
                    )
                    return answer
            except _LOST as error:
                refusal = self._lost(error, attempt)
                if refusal is not None:
                    raise refusal from error
        raise Refusal(503, _DIED)

    def _lost(self, error: Exception, attempt: int) -> Refusal | None:
        """What a client is told that gets no answer; None where it may be asked for again: an
        answer depends on the request alone. Once, lest it kills replica by replica."""
        if isinstance(error, TimeoutError):
            return Refusal(504, f"no answer within {self._options.timeout_s:g} s.")
        if isinstance(error, BackPressureError):
            return Refusal(503, "the queue is full. Try again later.")
        _LOG.warning(
            "a replica died or left while it had a request (attempt %d): %s",
            attempt,
            type(error).__name__,
        )
        return None

    async def _ready(self) -> bool:
        try:
            async with asyncio.timeout(5):
                return bool(await self._replica.ready.remote())
        except _LOST:
            return False


def _whole(request: Request, header: str) -> int | None:
    """A header's whole number; None without it."""
    text = request.headers.get(header)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise Refusal(400, f"{header} is no number of bytes.")
    return int(text)


def home_of(context_id: str | None, key: bytes | None) -> str:
    """What routes a request: a digest of its context's name, or of the inputs.

    A request that has neither is routed by an empty text.

    Serve carries it in headers and tells it in logs, so a client's own text isn't it.
    """
    if context_id is not None:
        return hashlib.blake2b(
            context_id.encode("utf-8", "surrogatepass"), digest_size=20
        ).hexdigest()
    return "" if key is None else key.hex()
