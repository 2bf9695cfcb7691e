"""`RequestEngine`: many requests at once over one session, contexts kept, queries merged."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.tensors import CONTEXTS, names_of
from crossfuse.core.terminal import shown, shown_traceback
from crossfuse.errors import CrossfuseError, InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.context_cache import ContextCache, content_key
from crossfuse.runtime.session import Session
from crossfuse.serve.limits import Limits
from crossfuse.serve.merging import Merging
from crossfuse.serve.metrics import Meter, Totals

__all__ = ["Request", "RequestEngine", "UnexpectedError", "UnknownContextError"]

_LOG = logging.getLogger(__name__)
_MAX_IDS = 100_000
_MAX_ID = 256


class UnknownContextError(InputError):
    """A request names a context that is not kept here, and doesn't bring its inputs."""


class UnexpectedError(CrossfuseError):
    """A request failed in a way that is no fault of its inputs; the cause is in the log."""


@dataclass(frozen=True)
class Request:
    """Inputs by name; for contexts that were sent before, ``context_id`` instead of their inputs.

    ``key`` is the digest of the context inputs, where the caller knows it already.
    """

    inputs: Mapping[str, NDArray[Any]]
    context_id: str | None = None
    key: bytes | None = None


Answer = dict[str, NDArray[Any]] | CrossfuseError


class RequestEngine:
    """Answers requests over a session. Safe to use from several threads.

    Each request is checked by itself, whole, before it is merged with any other: names, element
    types, ranks, and sizes that agree within it. So what stands beside it can't make up for what is
    wrong with it, and each answer has exactly its rows.

    Args:
        session: of any bundle.
        cache_bytes: what kept contexts may take; 0 encodes every request's contexts.
        limits: what a request may be.
        merge: whether queries may be merged where shapes allow it.
        max_rows: queries in one merged call.
        meter: is told what happens.
    """

    def __init__(
        self,
        session: Session,
        *,
        cache_bytes: int = 1 << 30,
        limits: Limits | None = None,
        merge: bool = True,
        max_rows: int = 64,
        meter: Meter | None = None,
    ) -> None:
        self.session = session
        self.limits = limits or Limits()
        self.meter: Meter = meter or Totals()
        self.max_rows = max_rows
        self.context_names = names_of(session.stages["context"].inputs) if session.split else ()
        own = [spec for spec in session.inputs if spec.name not in self.context_names]
        self.merging = Merging(own, session.outputs)
        # Queries that have the contexts' own batch can't outnumber them.
        contexts = {
            size
            for spec in session.inputs
            if spec.name in self.context_names
            for size in spec.shape
        }
        self.merges = merge and self.merging.dim is not None and self.merging.dim not in contexts
        self.cache = ContextCache(session, cache_bytes) if session.split and cache_bytes else None
        self._ids: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def batch_dims(self) -> frozenset[str]:
        """Dimensions that count samples: of queries where those can be counted, and of contexts."""
        return frozenset({CONTEXTS} if self.merging.dim is None else {CONTEXTS, self.merging.dim})

    def prove_merging(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Try merging on real inputs of one request, and turn it off where answers change."""
        contexts = {name: inputs[name] for name in self.context_names}
        queries = {name: array for name, array in inputs.items() if name not in contexts}
        if self.merges and contexts:
            context = (
                self.session.encode(contexts).select([0])
                if _has_batch(self.session)
                else self.session.encode(contexts)
            )
            self.merges = self.merging.holds(
                lambda arrays: self.session.query(context, arrays), queries
            )
        elif self.merges:
            self.merges = self.merging.holds(self.session.run, queries)
        _LOG.debug(
            "queries of different requests are %s", "merged" if self.merges else "kept apart"
        )
        return self.merges

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the requests' order.

        Whatever is wrong with one is its own answer and touches no other.
        """
        answers: list[Answer] = [UnexpectedError("the request was not answered") for _ in requests]
        groups: dict[object, list[int]] = {}
        contexts: dict[int, Context] = {}
        queries: dict[int, dict[str, NDArray[Any]]] = {}
        for i, request in enumerate(requests):
            try:
                context, queries[i] = self._admit(request)
                signature = self.merging.signature(queries[i]) if self.merges else i
            except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to this request alone
                answers[i] = _failure(error)
                continue
            if context is not None:
                contexts[i] = context
            groups.setdefault((id(context), signature), []).append(i)
        for members in groups.values():
            for chunk in self._chunks(members, queries):
                asked = [queries[i] for i in chunk]
                for i, answer in zip(chunk, self._ask(contexts.get(chunk[0]), asked), strict=True):
                    answers[i] = answer
        return answers

    def context(self, request: Request) -> Context:
        """The contexts that a request brings or names, for more than one question.

        Args:
            request: its inputs are those of the contexts alone.

        Raises:
            InputError: what is wrong with the request.
        """
        self.limits.check(request.inputs)
        self._require_name(request.context_id)
        given = dict(request.inputs)
        if request.context_id is not None and not given:
            return self._known(request.context_id)
        wrong = sorted(set(given) ^ set(self.context_names))
        if wrong:
            raise InputError(
                "the inputs of a context are needed, and no others",
                where=", ".join(wrong),
                got=", ".join(given) or "nothing",
                expected=", ".join(self.context_names),
            )
        return self._context_of(request, given)

    def _require_name(self, named: str | None) -> None:
        if named is not None and not self.session.split:
            raise InputError(
                "the bundle has no context stage, so contexts have no ids", where="context_id"
            )
        if named is not None and not 0 < len(named) <= _MAX_ID:
            raise InputError(
                "a context's id has an impossible length",
                got=len(named),
                expected=f"1 to {_MAX_ID} characters",
            )

    def _admit(self, request: Request) -> tuple[Context | None, dict[str, NDArray[Any]]]:
        """The request's contexts, and its queries, checked by themselves.

        Raises:
            InputError: what is wrong with the request.
        """
        self.limits.check(request.inputs)
        named = request.context_id
        self._require_name(named)
        if named is not None and not any(name in request.inputs for name in self.context_names):
            context = self._known(named)
            return context, self.session.check(request.inputs, context)
        checked = self.session.check(request.inputs)
        return (self._context_of(request, checked) if self.session.split else None), checked

    def _context_of(self, request: Request, inputs: dict[str, NDArray[Any]]) -> Context:
        """The contexts of a request, from the cache or encoded.

        Their inputs are taken out of ``inputs``, which then are the queries' alone.
        """
        given = {name: inputs.pop(name) for name in self.context_names}
        start = time.perf_counter()
        if self.cache is None:
            context = self.session.encode(given)
            self.meter.stage("context", time.perf_counter() - start)
            return context
        key = request.key or content_key(given)
        found = self.cache.find(key)
        context = self.cache.encode_as(key, given) if found is None else found
        if found is None:
            self.meter.stage("context", time.perf_counter() - start)
        self.meter.cache(found is not None, self.cache.nbytes, len(self.cache))
        if request.context_id is not None:
            self._name(request.context_id, key)
        return context

    def _known(self, context_id: str) -> Context:
        with self._lock:
            key = self._ids.get(context_id)
        context = self.cache.find(key) if self.cache is not None and key is not None else None
        if context is None:
            raise UnknownContextError(
                "the context is not kept here (any more)",
                where="context_id",
                got=repr(context_id),
                do=f"Send its inputs again: {', '.join(self.context_names)}",
            )
        assert self.cache is not None
        self.meter.cache(True, self.cache.nbytes, len(self.cache))
        return context

    def _name(self, context_id: str, key: bytes) -> None:
        with self._lock:
            self._ids[context_id] = key
            self._ids.move_to_end(context_id)
            while len(self._ids) > _MAX_IDS:
                self._ids.popitem(last=False)

    def _chunks(
        self, members: list[int], queries: Mapping[int, Mapping[str, NDArray[Any]]]
    ) -> list[list[int]]:
        """Members in runs of at most ``max_rows`` queries."""
        chunks: list[list[int]] = []
        total = 0
        for i in members:
            rows = self.merging.rows(queries[i])
            if not chunks or total + rows > self.max_rows:
                chunks.append([])
                total = 0
            chunks[-1].append(i)
            total += rows
        return chunks

    def _ask(self, context: Context | None, asked: list[dict[str, NDArray[Any]]]) -> list[Answer]:
        if len(asked) == 1:
            return [self._alone(context, asked[0])]
        count = 1 if context is None else context.count
        rows = [self.merging.rows(queries) for queries in asked]
        try:
            whole = self._run(context, self.merging.merge(asked, count))
            return list(self.merging.take_apart(whole, rows, count))
        except Exception:  # noqa: BLE001 -- whose fault it is shows when each is asked alone
            return [self._alone(context, queries) for queries in asked]

    def _alone(self, context: Context | None, queries: dict[str, NDArray[Any]]) -> Answer:
        try:
            return self._run(context, queries)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to this request alone
            return _failure(error)

    def _run(
        self, context: Context | None, queries: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        start = time.perf_counter()
        outputs = (
            self.session.run(queries) if context is None else self.session.query(context, queries)
        )
        self.meter.stage("model" if context is None else "query", time.perf_counter() - start)
        self.meter.batch(self.merging.rows(queries))
        return {name: np.asarray(array) for name, array in outputs.items()}


def _failure(error: Exception) -> CrossfuseError:
    """The answer to a request that raised: what its inputs are to blame for is an `InputError`, an
    engine's failure is not."""
    if isinstance(error, InputError):
        return error
    _LOG.error("a request failed unexpectedly\n%s", shown_traceback(error))
    text = shown(" ".join(str(error).split()))[:200]
    failure = UnexpectedError(f"the request failed unexpectedly: {type(error).__name__}: {text}")
    failure.__cause__ = error
    return failure


def _has_batch(session: Session) -> bool:
    return any(
        spec.shape and isinstance(spec.shape[0], str) for spec in session.stages["context"].inputs
    )
