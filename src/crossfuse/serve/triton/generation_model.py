"""The Python backend's model that generates: Triton's requests to sequences beside each other, and
their tokens back as they come. Decoupled: a request has as many responses as it asks for.

Imported by the server, where Triton's module is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from crossfuse.core.foreign import own
from crossfuse.core.tensors import CONTEXTS, TensorSpec
from crossfuse.errors import InputError
from crossfuse.runtime.processing import load_processor
from crossfuse.serve.generating import Asking, Generating, Stream, whole_of, with_words
from crossfuse.serve.request_engine import Request
from crossfuse.serve.triton.config import STREAM, TEXT, TEXT_OUT
from crossfuse.serve.triton.model import folder_of, opened_engine, refused, settings_of

__all__ = ["TritonPythonModel"]

_LOOK_SECONDS = 0.05
"""How often it is looked at whether a client has gone."""

_DTYPES = {"tokens": np.int64, "log_probs": np.float32, "ended": np.bool_}


class TritonPythonModel:
    """What Triton's Python backend looks for in ``model.py``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle that lies beside ``model.py``."""
        config = json.loads(args["model_config"])
        given = settings_of(config)
        requests = opened_engine(args, given)
        processor = with_words(load_processor(folder_of(args)))
        slots, queue = int(given["slots"]), int(given["max_queue"])
        self.begin(Generating(requests, slots, queue, processor))

    def begin(self, generating: Generating) -> None:
        """Answer requests by this."""
        self._generating = generating
        session = generating.requests.session
        self._specs = {spec.name: spec for spec in session.stages["context"].inputs}
        self._news: SimpleQueue[_Answer | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="crossfuse answers", daemon=True)
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin all that Triton hands over; their responses come later."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                asking, as_it_comes = self._read(request)
                answer = _Answer(sender, as_it_comes)
                stream = self._generating.begin(asking, partial(self._news.put, answer))
                answer.stream = stream
                self._news.put(answer)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to this request alone
                _end(sender, refused(own(error)))

    def finalize(self) -> None:
        """Release the engines; sequences that are not done end with an error."""
        self._generating.close()
        self._news.put(None)
        self._thread.join()
        self._generating.requests.session.close()

    def _read(self, request: Any) -> tuple[Asking, bool]:
        """What is asked, and whether its tokens are wanted as they come."""
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        parameters = json.loads(request.parameters() or "{}")
        if not isinstance(parameters, dict):
            raise InputError("the request is malformed", where="parameters", expected="an object")
        named = parameters.pop("context_id", None)
        if named is not None and not isinstance(named, str):
            raise InputError("the request is malformed", where="context_id", expected="str")
        as_it_comes = _plain(parameters.pop(STREAM, False))
        if not isinstance(as_it_comes, bool):
            raise InputError("the request is malformed", where=STREAM, expected="true or false")
        text = given.pop(TEXT, None)
        arrays = {
            name: _shaped(array, self._specs[name]) if name in self._specs else array
            for name, array in given.items()
        }
        settings = {name: _plain(value) for name, value in parameters.items()}
        words = None if text is None else _words(text)
        return Asking(Request(arrays, named), words, settings), as_it_comes

    def _send(self) -> None:
        """Responses of all requests, in a thread of their own."""
        open_: set[_Answer] = set()
        looked = time.monotonic()
        while True:
            try:
                answer = self._news.get(timeout=_LOOK_SECONDS if open_ else None)
            except Empty:
                answer = _NOBODY
            if answer is None:
                return
            if answer is not _NOBODY and not answer.closed:
                open_.add(answer)
                answer.send()
            if answer is _NOBODY or time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                for one in open_:
                    one.look()
            open_ = {one for one in open_ if not one.closed}


class _Answer:
    """A request's responses.

    Attributes:
        stream: where its tokens come from.
        closed: there are no more.
    """

    def __init__(self, sender: Any, as_it_comes: bool) -> None:
        self._sender, self._as_it_comes = sender, as_it_comes
        self._events: list[dict[str, Any]] = []
        self.stream: Stream | None = None
        self.closed = False

    def send(self) -> None:
        """What has come since the last time; all of it at the end, where that is wanted."""
        try:
            self._send_news()
        except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs to this request alone
            self._close(refused(own(error)))

    def look(self) -> None:
        """Free the slot of a client that has gone."""
        if not self.closed and self._sender.is_cancelled():
            self._cancel()
            code = pb_utils.TritonError.CANCELLED
            self._close(
                pb_utils.InferenceResponse(
                    error=pb_utils.TritonError("the request was cancelled", code)
                )
            )

    def _send_news(self) -> None:
        if self.stream is None:
            return
        while (event := self.stream.take()) is not None:
            self._events.append(event)
        ended = self.stream.ended
        if not self._events or not (ended or self._as_it_comes):
            return
        response = _response(whole_of(self._events))
        self._events = []
        if ended:
            self._close(response)
        else:
            self._sender.send(response)

    def _cancel(self) -> None:
        if self.stream is not None:
            self.stream.cancel()

    def _close(self, response: Any) -> None:
        self.closed = True
        try:
            _end(self._sender, response)
        except Exception:  # noqa: BLE001 -- who asked is gone, whatever its end looked like
            self._cancel()


_NOBODY = _Answer(None, as_it_comes=False)


def _end(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _response(event: Mapping[str, Any]) -> Any:
    tensors = [
        pb_utils.Tensor(name, np.atleast_1d(np.asarray(event[name], dtype)))
        for name, dtype in _DTYPES.items()
        if name in event
    ]
    if TEXT_OUT in event:
        text = np.array([event[TEXT_OUT].encode()], object)
        tensors.append(pb_utils.Tensor(TEXT_OUT, text))
    return pb_utils.InferenceResponse(tensors)


def _shaped(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """A tensor of one context, which comes flat, in its shape: one size may be open.

    Raises:
        InputError: numbers that fill no such shape.
    """
    shape = [1 if size == CONTEXTS else size for size in spec.shape]
    known = prod(size for size in shape if isinstance(size, int))
    unknown = sum(isinstance(size, str) for size in shape)
    fits = bool(known) and array.size % known == 0 and (unknown == 1 or array.size == known)
    if unknown > 1 or not fits:
        raise InputError(
            "an input has several open sizes, which a flat list doesn't tell"
            if unknown > 1
            else "the numbers of an input don't fill its shape",
            where=spec.name,
            got=f"{array.size} numbers",
            expected=f"[{', '.join(map(str, spec.shape))}] of one context",
        )
    return array.reshape([-1 if isinstance(size, str) else size for size in shape])


def _words(text: NDArray[Any]) -> str:
    if text.size != 1:
        raise InputError("one text is needed", where=TEXT, got=f"{text.size} of them")
    found = text.reshape(-1)[0]
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def _plain(value: Any) -> Any:
    """A parameter: the protocol has no lists, so these come as JSON in a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
