"""`Generating`: requests that are answered token by token, beside each other, over one session. No
server in here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossfuse.bundle.manifest import Manifest
from crossfuse.core.tensors import CONTEXTS, POSITION
from crossfuse.errors import BundleError, CrossfuseError, InputError, PackageError
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.ticket import Ticket
from crossfuse.runtime.processing.asked import asked, beginning, begun
from crossfuse.runtime.processing.processor import Processor
from crossfuse.runtime.processing.words import Pieces
from crossfuse.serve.generation_parameters import checked_parameters
from crossfuse.serve.request_engine import Request, RequestEngine

__all__ = ["Asking", "Generating", "Stream", "can_generate", "prompt_of", "whole_of", "with_words"]

_TEXTS = "input_ids"


def can_generate(manifest: Manifest) -> bool:
    """Whether the sequences of a bundle can stand side by side in one state, each over a context of
    its own."""
    if manifest.decode is None or "step" not in manifest.stages:
        return False
    step = manifest.stages["step"].inputs
    places = next(spec for spec in step if spec.name == POSITION)
    of_contexts = any(CONTEXTS in spec.shape for spec in manifest.stages["context"].outputs)
    return places.shape != (1,) and of_contexts


def with_words(processor: Processor) -> Processor | None:
    """A processor that makes text of ids; None where the bundle, or this machine, has no tokenizer
    for it."""
    try:
        processor.words  # noqa: B018 -- it is read at the first use
    except (BundleError, PackageError):
        return None
    return processor


@dataclass(frozen=True)
class Asking:
    """What a sequence is generated from.

    Attributes:
        request: inputs of its context, and its prompt under the name of the ids.
        text: in words: what an encoder of texts reads, else what the answer begins with.
        parameters: settings of generation, as the client gives them.
        whole: the answer is wanted when it is whole, and not as it comes.
    """

    request: Request
    text: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False


class Stream:
    """An answer as it comes. Any thread may read it.

    Args:
        ticket: of the sequence.
        pieces: that make text of its tokens, the prompt's in them already; None for none.
    """

    def __init__(self, ticket: Ticket, pieces: Pieces | None) -> None:
        self._ticket, self._pieces = ticket, pieces
        self._lock, self._ended = threading.Lock(), False

    def take(self) -> dict[str, Any] | None:
        """What came since the last call, without waiting, as plain data; None where nothing did.

        The last one has ``ended``: whether the sequence ended by itself, and is not as long as it
        may be.

        Raises:
            CrossfuseError: what went wrong.
        """
        with self._lock:
            done = self._ticket.done
            new = self._ticket.take()
            last = done and not self._ended
            if not new and not last:
                return None
            event: dict[str, Any] = {
                "tokens": [one.token for one in new],
                "log_probs": [round(one.log_prob, 6) for one in new],
            }
            if self._pieces is not None:
                text = "".join(self._pieces.add(one.token) for one in new)
                event["text_output"] = text + (self._pieces.rest() if last else "")
            if last:
                self._end(event)
            return event

    def _end(self, event: dict[str, Any]) -> None:
        """Say how it ended; what went wrong is raised by the next call, behind the tokens."""
        with suppress(CrossfuseError):
            event["ended"] = bool(self._ticket.result().ended[0])
            self._ended = True

    @property
    def done(self) -> bool:
        """No more tokens come; what there is may not be taken yet."""
        return self._ticket.done

    @property
    def ended(self) -> bool:
        """Nothing more is to be taken."""
        return self._ended

    def cancel(self) -> None:
        """Nobody waits for it any more: its slot is free at the next step."""
        self._ticket.cancel()


class Generating:
    """Answers requests token by token. Safe to use from several threads.

    Args:
        requests: of the same session; its contexts and limits.
        slots: how many sequences there can be at once.
        queue: how many more may wait.
        processor: of the bundle; texts need its tokenizer.

    The memory of the slots is taken with the first sequence.

    Raises:
        InputError: a bundle whose sequences can't stand side by side.
    """

    def __init__(
        self,
        requests: RequestEngine,
        slots: int,
        queue: int,
        processor: Processor | None = None,
    ) -> None:
        self.requests, self.processor = requests, processor
        self.engine = GenerationEngine(requests.session, slots, queue=queue)

    def begin(self, asking: Asking, notify: Callable[[], None] | None = None) -> Stream:
        """Encode the context, where it is not kept, and let the sequence wait for a slot.

        Args:
            asking: what it is generated from.
            notify: is called from another thread when there is something to take.

        Raises:
            InputError: what is wrong with the request.
            QueueFullError: as many sequences wait as may.
        """
        session = self.requests.session
        settings = checked_parameters(asking.parameters, session.generation)
        given, prompt = self._inputs(asking)
        request = Request(given, asking.request.context_id, asking.request.key)
        with self.engine.aside():
            # Beside a step it would take long for both: they would share the cores.
            context = self.requests.context(request)
        # Before the sequence waits: a failure here leaves nobody generating for no one.
        pieces = None if self.processor is None else self.processor.pieces()
        for token in prompt or []:
            if pieces is not None:
                pieces.add(token)
        return Stream(self.engine.submit(context, prompt, notify=notify, **settings), pieces)

    def close(self) -> None:
        """Stop; sequences that are not done end with an error."""
        self.engine.close()

    def _inputs(self, asking: Asking) -> tuple[dict[str, Any], list[int] | None]:
        """Inputs of the context, and the prompt."""
        session = self.requests.session
        assert session.decode is not None
        given = dict(asking.request.inputs)
        ids = given.pop(session.decode.tokens, None)
        prompt = None if ids is None else prompt_of(ids, session.decode.tokens)
        if asking.text is None:
            return given, prompt
        if self.processor is None:
            raise InputError(
                "the server has no tokenizer for this bundle",
                where="text_input",
                do="Send ids as inputs",
            )
        read = _TEXTS in self.requests.context_names
        places = self.processor.prompt_form is not None and not read
        if places or not read:
            if prompt is not None:
                raise InputError(
                    "the prompt is given twice, as text and as ids", where=session.decode.tokens
                )
            if places:
                first, prompt = begun(session, self.processor, asking.text)
                # Of a context that is kept, the first tokens are known.
                return ({**given, **first} if given else given), prompt
            return given, beginning(session, self.processor, asking.text)
        if given:
            raise InputError(
                "a text is read in place of the context's inputs", where=", ".join(sorted(given))
            )
        return asked(session, self.processor, text=asking.text).inputs, prompt


def prompt_of(ids: Any, name: str) -> list[int]:
    """The prompt of a request that brings ids.

    Raises:
        InputError: no single row of ids.
    """
    array = np.asarray(ids)
    if (
        array.ndim not in (1, 2)
        or array.dtype.kind not in "iu"
        or array.shape[:-1] not in ((), (1,))
    ):
        raise InputError(
            "a prompt is one row of ids",
            where=name,
            got=f"{array.dtype}{list(array.shape)}",
            expected="[1, tokens]",
        )
    found: list[int] = array.reshape(-1).tolist()
    return found


def whole_of(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Events as one: lists and texts are joined, of the rest the last counts."""
    found: dict[str, Any] = {}
    for event in events:
        for name, value in event.items():
            joins = (name in found and isinstance(value, list)) or name == "text_output"
            found[name] = found.get(name, type(value)()) + value if joins else value
    return found
