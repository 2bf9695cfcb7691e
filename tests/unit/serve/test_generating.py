"""Requests answered token by token: contexts as for any request, prompts as ids or words."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import crossfuse
from coverage.rows import TARGETS
from crossfuse import InputError, runtime
from crossfuse.runtime.processing.prompt_form import PromptForm
from crossfuse.serve.generating import Asking, Generating, Stream, can_generate, whole_of
from crossfuse.serve.limits import Limits
from crossfuse.serve.request_engine import Request, RequestEngine, UnknownContextError
from unit.runtime.toy_decoder import IMAGES, VOCABULARY, toy_session

WORDS = "abcdefg"
OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


class Words:
    """Letters of the toy's vocabulary."""

    closes_up = False

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [WORDS.index(letter) for letter in text]

    def decode(self, ids: Any, *, special: bool = False) -> str:
        return "".join(WORDS[one] for one in ids)


def processor(form: PromptForm | None = None) -> Any:
    from crossfuse.runtime.processing.words import Pieces

    words: Any = Words()
    return SimpleNamespace(
        words=words, pieces=lambda: Pieces(words), prompt_form=form, places=frozenset([6])
    )


def generating(first: int = 0, **options: Any) -> Generating:
    session = toy_session({"decoder_start_token_id": 3, "eos_token_id": 0}, first=first)
    requests = RequestEngine(session, limits=Limits(max_batch=4))
    return Generating(requests, 2, 4, **options)


def whole(stream: Stream) -> dict[str, Any]:
    end, found = time.monotonic() + 20, []
    while not stream.ended:
        assert time.monotonic() < end
        event = stream.take()
        if event is None:
            time.sleep(0.001)
        else:
            found.append(event)
    assert stream.take() is None
    assert [("ended" in event) for event in found] == [False] * (len(found) - 1) + [True]
    tokens = [token for event in found for token in event["tokens"]]
    joined = {"tokens": tokens, "ended": found[-1]["ended"]}
    if "text_output" in found[0]:
        joined["text_output"] = "".join(event["text_output"] for event in found)
    return joined


def request(image: int, prompt: list[int] | None = None, **more: Any) -> Request:
    inputs = {"image": IMAGES[[image]]}
    inputs |= {} if prompt is None else {"ids": np.array([prompt])}
    return Request({**inputs, **more})


def test_answers_are_those_of_generate() -> None:
    made = generating(processor=processor())
    session = made.requests.session
    for image, prompt, parameters in (
        (0, [1, 2], {"max_new_tokens": 6}),
        (1, None, {"eos_token_id": [4]}),
        (1, [5], {"do_sample": True, "seed": 7, "max_new_tokens": 9}),
    ):
        told = threading.Event()
        asking = Asking(request(image, prompt), parameters=parameters)
        found = whole(made.begin(asking, told.set))
        assert told.is_set()
        context = session.encode(image=IMAGES[[image]])
        given = None if prompt is None else [prompt]
        alone = runtime.generate(session, context, given, **parameters)
        assert found["tokens"] == alone.new_tokens[0].tolist()
        assert found["ended"] == bool(alone.ended[0])
        assert found["text_output"] == "".join(WORDS[one] for one in found["tokens"])
    made.close()


def test_a_text_is_what_the_answer_begins_with() -> None:
    made = generating(processor=processor())
    asking = Asking(request(0), "bc", {"max_new_tokens": 4})
    found = whole(made.begin(asking))
    session = made.requests.session
    alone = runtime.generate(
        session, session.encode(image=IMAGES[:1]), [[3, 1, 2]], max_new_tokens=4
    )
    assert found["tokens"] == alone.new_tokens[0].tolist()
    with pytest.raises(InputError, match="given twice, as text and as ids"):
        made.begin(Asking(request(0, [1]), "bc"))
    made.close()
    bare = generating()
    with pytest.raises(InputError, match="no tokenizer for this bundle"):
        bare.begin(Asking(request(0), "bc"))
    assert set(whole(bare.begin(Asking(request(0))))) == {"tokens", "ended"}
    bare.close()


def test_a_text_is_asked_about_an_image() -> None:
    form = PromptForm("bg", "e", True, {"prefix_ids": ((2, 6),)})
    made = generating(2, processor=processor(form))
    parameters = {"max_new_tokens": 4, "repetition_penalty": 2.0}
    found = whole(made.begin(Asking(request(0), "cd", parameters)))
    session = made.requests.session
    context = session.encode(image=IMAGES[:1], prefix_ids=np.array([[1, 6]]))
    alone = runtime.generate(session, context, [[2, 3, 4]], **parameters)
    assert found["tokens"] == alone.new_tokens[0].tolist()
    assert found["text_output"] == "".join(WORDS[one] for one in found["tokens"])
    with pytest.raises(InputError, match="places elsewhere"):
        made.begin(Asking(request(0), "cg"))
    with pytest.raises(InputError, match="given twice"):
        made.begin(Asking(request(0, [1]), "bc"))
    made.close()


def test_contexts_are_kept_and_named() -> None:
    made = generating()
    named = Request(request(0).inputs, "cat")
    first = whole(made.begin(Asking(named)))
    again = whole(made.begin(Asking(Request({"ids": np.array([[3]])}, "cat"))))
    assert first == again
    assert made.requests.cache is not None
    assert made.requests.cache.misses == 1
    with pytest.raises(UnknownContextError, match="'dog'"):
        made.begin(Asking(Request({}, "dog")))
    made.close()


@pytest.mark.parametrize(
    ("asking", "error"),
    [
        (Asking(Request({})), r"inputs of a context are needed.*\(image\): got nothing"),
        (Asking(request(0, more=np.ones(1))), r"and no others \(more\)"),
        (Asking(request(0, [VOCABULARY] * 2)), "outside its table"),
        (Asking(Request({"image": IMAGES})), "one sequence over one context"),
        (Asking(Request({"image": IMAGES[:, :3]})), "image"),
        (Asking(Request({"image": IMAGES[[0]] * np.nan})), "NaN"),
        (Asking(Request({"image": np.repeat(IMAGES, 3, 0)})), "batch is too large"),
        (Asking(request(0, ids=np.ones((2, 3), int))), r"one row of ids \(ids\)"),
        (Asking(request(0, ids=np.float32([[1]]))), r"one row of ids \(ids\)"),
        (Asking(request(0, ids=np.ones((1, 0), int))), "a prompt is empty"),
        (Asking(request(0), parameters={"num_beams": 4}), "greedily or by samples"),
        (Asking(request(0), parameters={"prompt": 4}), "no such setting"),
        (Asking(Request(request(0).inputs, "x" * 300)), "impossible length"),
    ],
)
def test_what_is_wrong_is_told(asking: Asking, error: str) -> None:
    made = generating()
    with pytest.raises(InputError, match=error):
        whole(made.begin(asking))
    assert whole(made.begin(Asking(request(1), parameters={"max_new_tokens": 2})))["tokens"]
    made.close()


def test_which_bundles_generate(shared_bundle: Callable[..., crossfuse.Bundle]) -> None:
    old = crossfuse.open_bundle(OLD)
    assert not can_generate(old.manifest)
    assert not can_generate(shared_bundle("qformer", size="tiny").manifest)
    assert can_generate(shared_bundle("coverage/bart", TARGETS).manifest)


def test_events_together_are_one() -> None:
    events: list[dict[str, Any]] = [
        {"tokens": [1], "text_output": "a"},
        {"tokens": [2, 3], "text_output": ""},
        {"tokens": [], "text_output": " b", "ended": True},
    ]
    assert whole_of(events) == {"tokens": [1, 2, 3], "text_output": "a b", "ended": True}
    assert whole_of([{"tokens": [1], "ended": False}]) == {"tokens": [1], "ended": False}
