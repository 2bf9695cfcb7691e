"""The Open Inference Protocol's paths as Starlette routes, and exceptions as answers: each is a
status and one paragraph in JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfuse import __version__
from crossfuse.core.terminal import shown_traceback
from crossfuse.errors import CrossfuseError

__all__ = ["Later", "Model", "Refusal", "answered", "protocol_routes", "status_of"]

_LOG = logging.getLogger("ray.serve")
_SERVER = {"name": "crossfuse", "version": __version__, "extensions": ["binary_tensor_data"]}
_VERSION = "1"

Endpoint = Callable[[Request], Awaitable[Response]]


class Refusal(Exception):  # noqa: N818 - it isn't an error of the program
    """An answer that is not outputs."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


_LATER = "crossfuse.later"


class Later(Response):
    """Stands for an answer that is sent as it comes, by the server itself."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends nothing here."""
        scope[_LATER].append(self._response)


class Model(Protocol):
    """What the routes need of the one model that is served.

    Attributes:
        name: in URLs.
    """

    name: str

    async def metadata(self, request: Request) -> Response:
        """Names, types and shapes of the model's tensors."""

    async def ready(self, request: Request) -> Response:
        """200 where requests would be answered, else 503."""

    async def infer(self, request: Request) -> Response:
        """Outputs for the request's inputs."""

    async def generate(self, request: Request) -> Response:
        """A generated sequence, whole."""

    async def generate_stream(self, request: Request) -> Response:
        """A generated sequence, as it comes."""


def protocol_routes(model: Model) -> ASGIApp:
    """An application of the protocol's paths for one model of one version.

    Anything else is a 404 that says what is not known: the version, the model, or the path. A slash
    more or less is no other path.
    """

    def of_model(endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            _require_model(request, model.name)
            return await endpoint(request)

        return checked

    routes = [
        _route("/v2", _server, "GET"),
        _route("/v2/health/live", _live, "GET"),
        _route("/v2/health/ready", model.ready, "GET"),
    ]
    for root in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            _route(root, of_model(model.metadata), "GET"),
            _route(f"{root}/ready", of_model(model.ready), "GET"),
            _route(f"{root}/infer", of_model(model.infer), "POST"),
            _route(f"{root}/generate", of_model(model.generate), "POST"),
            _route(f"{root}/generate_stream", of_model(model.generate_stream), "POST"),
        ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/{rest:path}"):
        routes.append(_route(path, of_model(_unknown), None))
    routes.append(_route("/{rest:path}", _unknown, None))
    handlers = {
        Refusal: _refused,
        CrossfuseError: _refused,
        ClientDisconnect: _gone,
        Exception: _failed,
    }
    return ExceptionMiddleware(Router(routes, redirect_slashes=False), handlers)


async def answered(app: ASGIApp, request: Request) -> Response:
    """What an application answers to a request: whole, or a response that is still to be sent."""
    head: Message = {}
    later: list[Response] = []
    body: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            body.append(message.get("body", b""))

    path = "/" + "/".join(part for part in request.scope["path"].split("/") if part)
    scope = {**request.scope, "path": path, "root_path": "", _LATER: later}
    await app(scope, request.receive, send)
    if later:
        return later[0]
    response = Response(b"".join(body), head["status"])
    response.raw_headers = list(head["headers"])
    return response


def status_of(error: BaseException) -> int:
    """The status that an exception is counted as; 499 where the client went away."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, CrossfuseError):
        return 400
    return 499 if isinstance(error, ClientDisconnect) else 500


def _route(path: str, endpoint: Endpoint, method: str | None) -> Route:
    """A route of one method, or of all; Starlette would add HEAD to GET."""
    route = Route(path, endpoint)
    route.methods = None if method is None else {method}
    return route


def _require_model(request: Request, name: str) -> None:
    parts: Iterable[str] = request.path_params.get("rest", "").split("/")
    first, second, *_ = *parts, "", ""
    version = request.path_params.get("version") or (second if first == "versions" else "")
    if version and version != _VERSION:
        raise Refusal(404, f"the model has no version {version!r}; it has {_VERSION}.")
    asked = request.path_params["name"]
    if asked != name:
        raise Refusal(404, f"there is no model {asked!r}; there is {name!r}.")


async def _server(request: Request) -> Response:
    return JSONResponse(_SERVER)


async def _live(request: Request) -> Response:
    return Response()


async def _unknown(request: Request) -> Response:
    raise Refusal(404, f"{request.method} {request.scope['path']} is not known here.")


async def _refused(request: Request, error: Exception) -> Response:
    return _refusal(status_of(error), str(error))


async def _gone(request: Request, error: Exception) -> Response:
    return _refusal(400, "the client went away.")


async def _failed(request: Request, error: Exception) -> Response:
    """The last line of defence: the client must not see a traceback, the log must."""
    _LOG.error("a request failed unexpectedly\n%s", shown_traceback(error))
    return _refusal(500, "the server failed; its log says why.")


def _refusal(status: int, text: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(
        json.dumps({"error": text}),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
