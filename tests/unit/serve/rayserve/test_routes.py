"""The protocol's paths: which request reaches what, and what an exception is answered with."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed")

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from crossfuse.errors import InputError
from crossfuse.serve.rayserve.routes import (
    Refusal,
    answered,
    protocol_routes,
    status_of,
)
from unit.serve.rayserve.asgi_client import Reply, ask


class Recorder:
    """A model that says what was asked of it."""

    name = "m"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def metadata(self, request: Request) -> Response:
        return JSONResponse({"reached": "metadata"})

    async def ready(self, request: Request) -> Response:
        return Response(status_code=503)

    async def infer(self, request: Request) -> Response:
        if self.error is not None:
            raise self.error
        return Response(await request.body(), headers={"x-more": "1"}, media_type="text/plain")

    async def generate(self, request: Request) -> Response:
        return JSONResponse({"reached": "generate"})

    async def generate_stream(self, request: Request) -> Response:
        return JSONResponse({"reached": "generate_stream"})


def reply(method: str, path: str, body: bytes = b"", error: Exception | None = None) -> Reply:
    app = protocol_routes(Recorder(error))
    return ask(partial(answered, app), method, path, body)


@pytest.mark.parametrize("path", ["/v2", "/v2/", "//v2"])
def test_the_server_describes_itself(path: str) -> None:
    assert reply("GET", path).json["name"] == "crossfuse"


@pytest.mark.parametrize("root", ["/v2/models/m", "/v2/models/m/versions/1"])
def test_a_models_paths(root: str) -> None:
    assert reply("GET", root).json == {"reached": "metadata"}
    assert reply("GET", f"{root}/ready").status == 503
    found = reply("POST", f"{root}/infer", b"some bytes")
    assert (found.status, found.body, found.headers["x-more"]) == (200, b"some bytes", "1")
    assert found.headers["content-type"].startswith("text/plain")
    for name in ("generate", "generate_stream"):
        assert reply("POST", f"{root}/{name}", b"{}").json == {"reached": name}


def test_health() -> None:
    assert reply("GET", "/v2/health/live").status == 200
    assert reply("GET", "/v2/health/ready").status == 503


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/v2/models/other", "there is no model 'other'; there is 'm'."),
        ("POST", "/v2/models/other/infer", "there is no model 'other'"),
        ("PUT", "/v2/models/other/anything/else", "there is no model 'other'"),
        ("GET", "/v2/models/m/versions/2", "no version '2'; it has 1."),
        ("POST", "/v2/models/m/versions/2/infer", "no version '2'"),
        ("POST", "/v2/models/other/versions/2/else", "no version '2'"),
        ("GET", "/v2/models/m/infer", "GET /v2/models/m/infer is not known here."),
        ("POST", "/v2/models/m", "POST /v2/models/m is not known here."),
        ("POST", "/v2/models/m/versions/1", "POST /v2/models/m/versions/1 is not known here."),
        ("GET", "/v2/models/m/versions", "GET /v2/models/m/versions is not known here."),
        ("HEAD", "/v2", "HEAD /v2 is not known here."),
        ("POST", "/v2", "POST /v2 is not known here."),
        ("GET", "/", "GET / is not known here."),
        ("GET", "/v2/models", "GET /v2/models is not known here."),
    ],
)
def test_anything_else_is_told_in_one_paragraph(method: str, path: str, said: str) -> None:
    found = reply(method, path)
    assert found.status == 404
    assert said in found.json["error"]
    assert found.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("error", "status", "counted", "said"),
    [
        (Refusal(503, "full."), 503, 503, "full."),
        (Refusal(413, "large."), 413, 413, "large."),
        (InputError("bad", where="x"), 400, 400, "bad (x)"),
        (ClientDisconnect(), 400, 499, "went away"),
        (KeyError("secret"), 500, 500, "the server failed; its log says why."),
    ],
)
def test_exceptions_are_answers(error: Exception, status: int, counted: int, said: str) -> None:
    found = reply("POST", "/v2/models/m/infer", error=error)
    assert (found.status, status_of(error)) == (status, counted)
    assert said in found.json["error"]
    assert "secret" not in found.body.decode()
    assert ("retry-after" in found.headers) == (status == 503)


def test_the_log_says_what_the_client_must_not_see(caplog: Any) -> None:
    with caplog.at_level("ERROR", logger="ray.serve"):
        reply("POST", "/v2/models/m/infer", error=KeyError("secret"))
    assert "secret" in caplog.text
