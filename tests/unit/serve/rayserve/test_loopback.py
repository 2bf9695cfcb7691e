"""Where a replica's own server listens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="ray is not installed")

from grpc.aio import _server

from crossfuse.serve.rayserve import loopback


@pytest.mark.parametrize(
    ("gcs", "asked", "listens"),
    [
        ("127.0.0.1:6379", "[::]:0", "127.0.0.1:0"),
        ("127.0.0.1:6379", "0.0.0.0:7", "127.0.0.1:7"),
        ("[::1]:6379", "[::]:0", "[::1]:0"),
        ("127.0.0.1:6379", "10.0.0.1:5", "10.0.0.1:5"),
        ("10.0.0.1:6379", "[::]:0", "[::]:0"),
    ],
)
def test_servers_listen_where_ray_does(
    monkeypatch: pytest.MonkeyPatch, gcs: str, asked: str, listens: str
) -> None:
    found: list[str] = []
    monkeypatch.setattr(
        _server.Server, "add_insecure_port", lambda _, where: found.append(where) or 1
    )
    monkeypatch.setattr(loopback.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(
        loopback.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=gcs)
    )
    loopback.keep_on_loopback()
    server = object.__new__(_server.Server)
    assert _server.Server.add_insecure_port(server, asked) == 1
    assert found == [listens]
    server._loop = None


def test_without_ray_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback.ray, "is_initialized", lambda: False)
    before = _server.Server.add_insecure_port
    loopback.keep_on_loopback()
    assert _server.Server.add_insecure_port is before
