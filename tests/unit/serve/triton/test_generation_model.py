"""The model that generates inside Triton, over a stand-in of the server's module: responses as
tokens come or at the end, what is wrong with a request, and clients that go away."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crossfuse import runtime
from crossfuse.runtime.slots import Slots
from crossfuse.serve.generating import Generating
from crossfuse.serve.limits import Limits
from crossfuse.serve.request_engine import RequestEngine
from unit.runtime.toy_decoder import IMAGES, LENGTH, toy_session
from unit.serve.test_generating import processor

FINAL = 1


class TritonError(Exception):
    NOT_FOUND, INVALID_ARG, INTERNAL, UNAVAILABLE, CANCELLED = range(5)

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    def __init__(self, outputs: Any = (), error: Any = None) -> None:
        self.outputs = {one.name(): one.as_numpy() for one in outputs}
        self.error = error


class Sender:
    """Where responses go. No more may come behind the final one."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []
        self.final, self.gone = threading.Event(), False
        self.told = threading.Event()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.final.is_set()
        self.sent.append(response)
        self.told.set()
        if flags == FINAL:
            self.final.set()

    def is_cancelled(self) -> bool:
        return self.gone

    def whole(self) -> list[InferenceResponse]:
        assert self.final.wait(20)
        return self.sent


class Asked:
    def __init__(self, parameters: Any = None, **arrays: Any) -> None:
        self._tensors = [Tensor(name, np.asarray(array)) for name, array in arrays.items()]
        self._parameters = parameters if isinstance(parameters, str) else json.dumps(parameters)
        self.sender = Sender()

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def parameters(self) -> str:
        return "" if self._parameters == "null" else self._parameters

    def get_response_sender(self) -> Sender:
        return self.sender


STAND_IN = SimpleNamespace(
    TritonError=TritonError, Tensor=Tensor, InferenceResponse=InferenceResponse,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
)  # fmt: skip


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A model over a toy decoder."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", STAND_IN)
    for name in ("model", "generation_model"):
        monkeypatch.delitem(sys.modules, f"crossfuse.serve.triton.{name}", raising=False)
    module = importlib.import_module("crossfuse.serve.triton.generation_model")
    made: list[Any] = []

    def of(session: Any = None, slots: int = 2, **settings: Any) -> Any:
        model = module.TritonPythonModel()
        session = session or toy_session({"decoder_start_token_id": 3, **settings})
        requests = RequestEngine(session, limits=Limits(max_batch=4))
        model.begin(Generating(requests, slots, 4, processor()))
        made.append(model)
        return model

    yield of
    for model in made:
        model.finalize()


def alone(ids: list[int], **settings: Any) -> list[int]:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    return runtime.generate(session, context, [ids], **settings).new_tokens[0].tolist()


FLAT = IMAGES[0]


def test_one_response_or_one_for_each_token(make: Callable[..., Any]) -> None:
    model = make()
    asked = [
        Asked({"max_new_tokens": 5}, image=FLAT, ids=[1, 2]),
        Asked({"max_new_tokens": 4, "stream": True}, image=FLAT),
        Asked({"max_new_tokens": "3", "suppress_tokens": "[0, 4]"}, image=FLAT, ids=[2]),
    ]
    assert model.execute(asked) is None
    whole, pieces, third = (one.sender.whole() for one in asked)
    (only,) = whole
    assert only.outputs["tokens"].tolist() == alone([1, 2], max_new_tokens=5)
    assert only.outputs["tokens"].dtype == np.int64
    assert only.outputs["log_probs"].dtype == np.float32
    assert only.outputs["ended"].tolist() == [False]
    (text,) = only.outputs["text_output"].tolist()
    assert text.decode() == "".join("abcdefg"[token] for token in only.outputs["tokens"])
    tokens = [token for one in pieces for token in one.outputs["tokens"].tolist()]
    assert tokens == alone([3], max_new_tokens=4)
    assert ["ended" in one.outputs for one in pieces] == [False] * (len(pieces) - 1) + [True]
    assert third[0].outputs["tokens"].tolist() == alone(
        [2], max_new_tokens=3, suppress_tokens=[0, 4]
    )


def test_words_and_a_context_that_is_known(make: Callable[..., Any]) -> None:
    model = make()
    words = np.array([b"abc"], object)
    first = Asked({"max_new_tokens": 4, "context_id": "7"}, image=FLAT, text_input=words)
    model.execute([first])
    again = Asked({"max_new_tokens": 4, "context_id": "7"}, ids=[3, 0, 1, 2])
    first.sender.whole()
    model.execute([again])
    expected = alone([3, 0, 1, 2], max_new_tokens=4)
    for one in (first, again):
        assert one.sender.whole()[0].outputs["tokens"].tolist() == expected


BAD: dict[str, tuple[Asked, int, str]] = {
    "no context": (Asked({}), TritonError.INVALID_ARG, "inputs of a context"),
    "unknown": (Asked({"context_id": "x"}), TritonError.NOT_FOUND, "not kept here"),
    "id": (Asked({"context_id": 3}), TritonError.INVALID_ARG, "context_id"),
    "a list": (Asked([1]), TritonError.INVALID_ARG, "parameters"),
    "no JSON": (Asked("{"), TritonError.INTERNAL, "JSON"),
    "stream": (Asked({"stream": "often"}), TritonError.INVALID_ARG, "true or false"),
    "setting": (Asked({"beams": 3}, image=FLAT), TritonError.INVALID_ARG, "no such setting"),
    "beams": (Asked({"num_beams": 2}, image=FLAT), TritonError.INVALID_ARG, "beams"),
    "numbers": (Asked({}, image=FLAT[:3]), TritonError.INVALID_ARG, "don't fill its shape"),
    "twice": (Asked({}, image=np.append(FLAT, FLAT)), TritonError.INVALID_ARG, "fill its shape"),
    "prompt": (Asked({}, image=FLAT, ids=[1] * 50), TritonError.INVALID_ARG, "no room"),
    "texts": (
        Asked({}, image=FLAT, text_input=np.array([b"a", b"b"], object)),
        TritonError.INVALID_ARG, "one text",
    ),
}  # fmt: skip


def test_what_is_wrong_with_a_request_is_its_own(make: Callable[..., Any]) -> None:
    model = make()
    for one, _, _ in BAD.values():
        one.sender = Sender()
    good = Asked({"max_new_tokens": 3}, image=FLAT)
    model.execute([*(one for one, _, _ in BAD.values()), good])
    for name, (one, code, words) in BAD.items():
        (response,) = one.sender.whole()
        assert response.error.code == code, name
        assert words in str(response.error), name
    assert good.sender.whole()[0].error is None


def slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take a while."""
    step = Slots.step

    def slowly(slots: Slots, tokens: Any) -> Any:
        time.sleep(0.05)
        return step(slots, tokens)

    monkeypatch.setattr(Slots, "step", slowly)


def test_a_client_that_goes_away_frees_its_slot(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one slot: who waits for it gets it when the first has gone."""
    slowed(monkeypatch)
    model = make(slots=1)
    first = Asked({"max_new_tokens": LENGTH - 1, "stream": True}, image=FLAT)
    second = Asked({"max_new_tokens": 2}, image=FLAT)
    model.execute([first, second])
    assert first.sender.told.wait(20)
    first.sender.gone = True
    assert first.sender.final.wait(20)
    assert first.sender.sent[-1].error.code == TritonError.CANCELLED
    assert len(first.sender.sent) < LENGTH - 1
    assert second.sender.whole()[0].outputs["tokens"].tolist() == alone([3], max_new_tokens=2)


def test_the_end_ends_all(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch)
    model = make(slots=1)
    asked = [Asked({}, image=FLAT) for _ in range(2)]
    model.execute(asked)
    model.finalize()
    for one in asked:
        assert "closed" in str(one.sender.whole()[-1].error)
