"""Answers of many requests at once are those that each gets alone; what is wrong with one touches
no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossfuse import InputError, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import CrossfuseError
from crossfuse.runtime.session import Session
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.merging import Merging, agree
from crossfuse.serve.metrics import Totals
from crossfuse.serve.request_engine import Request, RequestEngine, UnknownContextError

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def blip(shared_bundle: Callable[..., Bundle]) -> Bundle:
    return shared_bundle("coverage/blip_retrieval")


@pytest.fixture(scope="module")
def qformer(shared_bundle: Callable[..., Bundle]) -> Bundle:
    return shared_bundle("qformer", size="tiny")


def blip_inputs(session: Session, image: int, queries: int, tokens: int, seed: int) -> Arrays:
    """One image of many by number, and texts."""
    images, texts = np.random.default_rng(image), np.random.default_rng(seed)
    made: Arrays = {}
    for spec in session.inputs:
        if spec.name == "pixel_values":
            made[spec.name] = images.standard_normal((1, *spec.shape[1:])).astype(np.float32)
        elif spec.name == "attention_mask":
            made[spec.name] = np.ones((queries, tokens), np.int64)
        else:
            made[spec.name] = texts.integers(3, 50, (queries, tokens))
    return made


def test_answers_are_those_of_each_alone(blip: Bundle) -> None:
    meter = Totals()
    engine = open_engine(blip.path, EngineOptions(target="ort-cpu"), meter=meter)
    assert engine.merges
    before = sum(meter.calls.values())
    session = engine.session
    requests = [
        Request(blip_inputs(session, image, queries, tokens, seed))
        for seed, (image, queries, tokens) in enumerate(
            [(0, 1, 5), (1, 2, 5), (0, 3, 5), (0, 1, 7), (1, 1, 5), (2, 2, 5)]
        )
    ]
    answers = engine.answer(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, CrossfuseError)
        expected = session.run(**request.inputs)
        assert agree(answer, expected)
        for name, array in expected.items():
            np.testing.assert_allclose(answer[name], array, rtol=1e-4, atol=1e-5)
    # Three images are encoded; image 0 with 5 tokens, with 7, image 1 and image 2 are four calls.
    assert sum(meter.calls.values()) - before == 3 + 4
    assert meter.rows[4] == 1
    assert (meter.hits, meter.misses) == (3, 3 + 1)
    session.close()


def test_what_is_wrong_with_one_touches_no_other(blip: Bundle) -> None:
    engine = open_engine(blip.path, EngineOptions(), limits=Limits(max_batch=4))
    good = blip_inputs(engine.session, 0, 2, 4, 1)
    ids = "input_ids"
    bad: list[Arrays] = [
        good | {ids: good[ids].astype(np.int32)},
        good | {ids: good[ids][0]},
        {name: array for name, array in good.items() if name != ids},
        good | {"pixel_values": np.full_like(good["pixel_values"], np.nan)},
        good | {"pixel_values": good["pixel_values"][:, :1]},
        blip_inputs(engine.session, 0, 5, 5, 1),
        good | {ids: np.full_like(good[ids], 10**6)},
        good | {"more": good[ids]},
        {},
    ]
    answers = engine.answer([Request(good), *map(Request, bad), Request(good)])
    expected = engine.session.run(**good)
    for answer in (answers[0], answers[-1]):
        assert not isinstance(answer, CrossfuseError)
        assert agree(answer, expected)
    said = [str(answer) for answer in answers[1:-1]]
    assert all(isinstance(answer, InputError) for answer in answers[1:-1]), said
    for text, part in zip(
        said,
        ["dtype", "rank", "missing", "NaN", "size", "batch is too large", "", "unknown", "missing"],
        strict=True,
    ):
        assert part in text
        assert "Traceback" not in text


def test_contexts_by_id(blip: Bundle) -> None:
    engine = open_engine(blip.path, EngineOptions())
    session = engine.session
    whole = blip_inputs(session, 0, 2, 5, 1)
    other = blip_inputs(session, 1, 2, 5, 1)
    text = {name: array for name, array in whole.items() if name != "pixel_values"}
    (unknown,) = engine.answer([Request(text, "cat")])
    assert isinstance(unknown, UnknownContextError)
    assert "pixel_values" in str(unknown)
    for inputs in (whole, other):
        # The second image takes the id over.
        named, by_id = engine.answer([Request(inputs, "cat"), Request(text, "cat")])
        assert not isinstance(named, CrossfuseError)
        assert not isinstance(by_id, CrossfuseError)
        assert agree(named, session.run(**inputs))
        assert agree(by_id, session.run(**inputs))
    assert engine.cache is not None
    engine.cache.clear()
    assert isinstance(engine.answer([Request(text, "cat")])[0], UnknownContextError)


def test_many_contexts_in_one_request_keep_their_order(qformer: Bundle) -> None:
    engine = open_engine(qformer.path, EngineOptions())
    session = engine.session
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 6, 24)).astype(np.float32)
    context = {"image_features": features, "image_mask": np.ones((2, 6), np.int64)}
    requests = []
    for fan_out in (1, 3, 2):
        ids = rng.integers(1, 50, (2 * fan_out, 4))
        requests.append(Request(context | {"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    assert engine.merges
    for request, answer in zip(requests, engine.answer(requests), strict=True):
        assert not isinstance(answer, CrossfuseError)
        assert agree(answer, session.run(**request.inputs))


def test_engine_under_threads(blip: Bundle) -> None:
    engine = open_engine(blip.path, EngineOptions(cache_mb=1))
    expected = {
        image: engine.session.run(**blip_inputs(engine.session, image, 2, 5, image))
        for image in range(4)
    }
    wrong: list[object] = []

    def work(start: int) -> None:
        for i in range(12):
            image = (start + i) % 4
            (answer,) = engine.answer([Request(blip_inputs(engine.session, image, 2, 5, image))])
            if isinstance(answer, CrossfuseError) or not agree(answer, expected[image]):
                wrong.append((image, answer))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["clip", "cross_modal_attention", "vilt"])
def test_whole_models(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    """CLIP's matrix of texts by images has no batch, so its requests never share a call."""
    engine = open_engine(zoo_bundle(name).path, EngineOptions(target="ort-cpu"))
    assert engine.merges == (name != "clip")
    from crossfuse.parity.session_check import smallest_inputs

    inputs = smallest_inputs(zoo_bundle(name))
    assert inputs is not None
    expected = engine.session.run(**inputs)
    for answer in engine.answer([Request(inputs), Request(inputs), Request(inputs)]):
        assert not isinstance(answer, CrossfuseError)
        assert agree(answer, expected)
    (refused,) = engine.answer([Request(inputs, "an id")])
    assert isinstance(refused, InputError)


def test_merging_is_tried_on_the_model() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3))
    merging = Merging([spec], [TensorSpec("y", "float32", ("batch", 3))])
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    assert merging.holds(lambda arrays: {"y": arrays["x"] * 2}, inputs)
    assert not merging.holds(lambda arrays: {"y": arrays["x"] - arrays["x"].mean(axis=0)}, inputs)
    assert not merging.holds(lambda arrays: {"y": np.sort(arrays["x"], axis=0)}, inputs)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([("batch", 3)], [("batch", "batch")]),
        ([("texts", 3), ("images", 3)], [("texts", "images"), ("images", "texts")]),
        ([("batch", 3)], [("2*batch", 3)]),
        ([("batch", "batch")], [("batch",)]),
        ([(4, 3)], [(4, 3)]),
        ([("batch", 3)], [()]),
    ],
)
def test_shapes_that_rule_merging_out(
    inputs: list[tuple[int | str, ...]], outputs: list[tuple[int | str, ...]]
) -> None:
    def specs(name: str, shapes: list[tuple[int | str, ...]]) -> list[TensorSpec]:
        return [TensorSpec(f"{name}{i}", "float32", shape) for i, shape in enumerate(shapes)]

    assert Merging(specs("x", inputs), specs("y", outputs)).dim is None


def test_inputs_without_a_batch_must_be_equal_to_merge() -> None:
    specs = [TensorSpec("x", "float32", ("batch", 2)), TensorSpec("scale", "float32", (1,))]
    merging = Merging(specs, [TensorSpec("y", "float32", ("batch", 2))])
    x = np.ones((1, 2), np.float32)
    one, other = np.float32([1]), np.float32([2])
    assert merging.signature({"x": x, "scale": one}) == merging.signature(
        {"x": x[:0], "scale": one}
    )
    assert merging.signature({"x": x, "scale": one}) != merging.signature({"x": x, "scale": other})


def test_engine_without_a_cache(blip: Bundle, tmp_path: Path) -> None:
    with runtime.load(blip.path) as session:
        meter = Totals()
        engine = RequestEngine(session, cache_bytes=0, meter=meter)
        inputs = blip_inputs(session, 0, 1, 5, 1)
        answers = engine.answer([Request(inputs), Request(inputs)])
        assert meter.calls["context"] == 2
        for answer in answers:
            assert not isinstance(answer, CrossfuseError)
            assert agree(answer, session.run(**inputs))
