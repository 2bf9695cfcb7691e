"""Replicas of a Ray on the loopback interface listen there, too.

Each replica of Serve has a gRPC server of its own for the others, on all of the machine's
interfaces whatever Ray's own address is. It is opened after the application's code was made, so
that code can say where.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import ray

__all__ = ["keep_on_loopback"]

_EVERYWHERE = ("[::]:", "0.0.0.0:")


def keep_on_loopback() -> None:
    """Let this process's gRPC servers listen on the loopback interface alone, where Ray does.

    To be called in a replica, before it serves. On a cluster nothing changes: other machines have
    to reach its replicas.
    """
    if not ray.is_initialized():
        return
    host = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if not ipaddress.ip_address(host.strip("[]")).is_loopback:
        return
    from grpc.aio import _server

    listens = _server.Server.add_insecure_port

    def on_loopback(server: Any, where: str) -> Any:
        for prefix in _EVERYWHERE:
            if where.startswith(prefix):
                where = f"{host}:{where.removeprefix(prefix)}"
        return listens(server, where)

    _server.Server.add_insecure_port = on_loopback
