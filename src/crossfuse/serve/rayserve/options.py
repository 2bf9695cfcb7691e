"""How the application is deployed; plain data that fits into a Serve config file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_reader import Origin, decode
from crossfuse.errors import InputError, Said
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions

__all__ = ["ServeOptions"]


_NOT_NEGATIVE = ("num_cpus", "num_gpus", "batch_wait_ms", "drain_s", "max_replicas", "slots")


@dataclass(frozen=True)
class ServeOptions(JsonData):
    """Options of an application.

    Args:
        bundle: the folder, at the same place on every node.
        name: of the model in URLs.
        engine: how replicas open the bundle.
        limits: of requests.
        replicas: processes that hold a session and a cache each.
        max_replicas: where larger than ``replicas``, Serve scales between the two by load.
        num_cpus: that a replica reserves, and its threads unless ``engine`` says otherwise.
        num_gpus: that a replica reserves.
        batch_size: requests that a replica answers at once.
        slots: sequences that a replica generates at once; 0 where it generates none.
        batch_wait_ms: how long a request waits for others.
        timeout_s: after which the client is told that it took too long.
        drain_s: how long a replica that is to stop may finish what it has.
        log_format: ``text`` or ``json``.
        revision: any text; another one replaces replicas although nothing else has changed.
    """

    bundle: str
    name: str
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1
    max_replicas: int = 0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_size: int = 8
    slots: int = 0
    batch_wait_ms: float = 2.0
    timeout_s: float = 60.0
    drain_s: float = 30.0
    log_format: str = "json"
    revision: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise InputError(
                "a model's name must fit into a URL",
                where=Said("--name", "name"),
                got=repr(self.name),
            )
        for name in ("replicas", "batch_size", "timeout_s"):
            if getattr(self, name) <= 0:
                raise InputError("an option must be positive", where=name, got=getattr(self, name))
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise InputError(
                    "an option must not be negative", where=name, got=getattr(self, name)
                )
        if self.log_format not in ("text", "json"):
            raise InputError(
                "a log format isn't known", got=self.log_format, expected="text or json"
            )

    @property
    def replicas_engine(self) -> EngineOptions:
        """How replicas open the bundle, their threads decided."""
        if self.engine.threads is not None:
            return self.engine
        return replace(self.engine, threads=max(1, round(self.num_cpus)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServeOptions:
        """From plain data.

        Raises:
            InputError: names that aren't options, or values that an option can't have.
        """
        origin = Origin("the application's configuration", "args")
        return decode(cls, data, origin, closed=True)
