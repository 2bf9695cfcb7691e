"""Slots: sequences of several contexts join, leave and stand beside others as if alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import crossfuse
from coverage.cases import CASES
from coverage.rows import TARGETS
from crossfuse import InputError, runtime
from crossfuse.runtime.session import Session
from crossfuse.runtime.slots import Slots
from unit.runtime.toy_decoder import LENGTH, VOCABULARY, logits_of, toy_session

IMAGES = np.random.default_rng(8).standard_normal((6, VOCABULARY)).astype(np.float32)


def test_memory_is_told_before_it_is_taken() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES)
    told = Slots.bytes_of(session, context, 5)
    slots = Slots(session, context, 5)
    assert told == slots.nbytes == 5 * (LENGTH + VOCABULARY) * 4
    addresses = {n: t.ctypes.data for n, t in slots.state.memory.tensors.items()}
    slots.join(context.select([0, 1, 2]), [1, 2])
    slots.step({0: 3, 2: 1})
    assert {n: t.ctypes.data for n, t in slots.state.memory.tensors.items()} == addresses
    assert slots.nbytes == told


def test_sequences_come_and_go_at_random() -> None:
    """What each gets is what its whole sequence alone gets; a slot's earlier ones leave nothing."""
    session, rng = toy_session(), np.random.default_rng(0)
    contexts = [session.encode(image=IMAGES[[i]]) for i in range(len(IMAGES))]
    slots = Slots(session, contexts[0], 4)
    live: dict[int, tuple[int, list[int]]] = {}
    joins = 0
    for _ in range(400):
        choice = rng.random()
        full = [slot for slot, (_, ids) in live.items() if len(ids) == LENGTH]
        if full or (live and choice < 0.15):
            gone = full or [int(rng.choice(list(live)))]
            slots.leave(gone)
            for slot in gone:
                del live[slot]
        elif choice < 0.45 and slots.free:
            count = int(rng.integers(1, len(slots.free) + 1))
            image = int(rng.integers(len(IMAGES)))
            prompts = [
                rng.integers(0, VOCABULARY, rng.integers(1, 6)).tolist() for _ in range(count)
            ]
            taken, made = slots.join(contexts[image], prompts)
            joins += count
            for row, (slot, prompt) in enumerate(zip(taken, prompts, strict=True)):
                assert slot not in live
                live[slot] = (image, prompt)
                expected = logits_of(prompt, IMAGES[image])
                np.testing.assert_allclose(made["logits"][row, -1], expected, rtol=1e-6)
        elif live and choice < 0.55:
            moved = slots.compact()
            live = {moved.get(slot, slot): one for slot, one in live.items()}
            assert sorted(live) == list(range(len(live)))
        elif live:
            chosen = rng.choice(list(live), rng.integers(1, len(live) + 1), replace=False)
            tokens = {int(slot): int(rng.integers(VOCABULARY)) for slot in chosen}
            made = slots.step(tokens)
            for slot, token in tokens.items():
                image, ids = live[slot]
                ids.append(token)
                expected = logits_of(ids, IMAGES[image])
                np.testing.assert_allclose(made["logits"][slot, -1], expected, rtol=1e-6)
        assert slots.taken == sorted(live)
    assert joins > 50


def test_contexts_get_several_prompts_each() -> None:
    session = toy_session()
    slots = Slots(session, session.encode(image=IMAGES[:1]), 6)
    slots.join(session.encode(image=IMAGES[2:3]), [6])
    prompts = [[1, 2, 3], [4], [5, 6], [1, 1]]
    taken, made = slots.join(session.encode(image=IMAGES[:2]), prompts)
    assert taken == [1, 2, 3, 4]
    for row, prompt in enumerate(prompts):
        expected = logits_of(prompt, IMAGES[row // 2])
        np.testing.assert_allclose(made["logits"][row, -1], expected, rtol=1e-6)


def test_what_does_not_fit_is_refused_and_nothing_joins() -> None:
    session, other = toy_session(), toy_session()
    context = session.encode(image=IMAGES[:3])
    slots = Slots(session, context, 2)
    longer = replace(
        context, tensors=MappingProxyType({"bias": np.zeros((3, VOCABULARY + 1), np.float32)})
    )
    assert slots.fits(context)
    assert not slots.fits(longer)
    for given, prompt, error in (
        (context, [1], r"slots are full: got 3 more sequences, expected at most 2: 0 of 2"),
        (other.encode(image=IMAGES[:1]), [1], "another bundle or target"),
        (
            longer,
            [1],
            r"another size .*\(bias\): got \['contexts', 8\], expected \['contexts', 7\]",
        ),
        (context.select([0]), [[1], []], "a prompt is empty"),
        (context.select([0, 1]), [[1], [2], [3]], "equally many prompts"),
        (context.select([0]), [7], "outside its table"),
        (context.select([0]), [1] * (LENGTH + 1), "the state is full"),
    ):
        with pytest.raises(InputError, match=error):
            slots.join(given, prompt)
        assert slots.free == [0, 1]
    slots.join(context.select([0, 1]), [1])
    with pytest.raises(InputError, match="slots are full.*Let some leave first"):
        slots.join(context.select([0]), [1])
    slots.leave([0])
    for tokens in ({}, {0: 1}, {2: 1}, {-1: 1}):
        with pytest.raises(InputError, match=r"sequences that have joined.*expected slots \[1\]"):
            slots.step(tokens)
    with pytest.raises(InputError, match="no such sequences"):
        slots.leave([2])
    for count in (0, -1, 1.5):
        with pytest.raises(InputError, match="has to be positive"):
            Slots(session, context, count)


def test_numbers_that_are_none_stay_with_their_sequence() -> None:
    """A slot's next sequence doesn't meet what is left of the last one, NaN times zero neither."""
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    slots = Slots(session, context, 2)
    slots.join(context, [1, 2, 3])
    slots.state.memory.tensors["state:kept"][0] = np.nan
    slots.leave([0])
    slots.join(context, [4])
    assert not np.isnan(slots.state.memory.tensors["state:kept"]).any()


def test_bundles_without_slots_say_why(shared_bundle: Callable[..., crossfuse.Bundle]) -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    for batch in (None, "images"):
        with pytest.raises(InputError, match="can't stand side by side"):
            Slots(session, replace(context, batch=batch), 2)
    with pytest.raises(InputError, match="encoded context"):
        Slots.bytes_of(session, {}, 2)  # type: ignore[arg-type]
    plain = shared_bundle("qformer", size="tiny")
    with runtime.load(plain.path) as split, pytest.raises(InputError, match="no step stage"):
        Slots(split, context, 2)


def alone(session: Session, inputs: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    state = session.start(session.encode(inputs), prompt=[ids])
    return np.array(state.outputs["logits"][0, -1])


@pytest.mark.parametrize(
    "name",
    ["bart", *(pytest.param(n, marks=pytest.mark.slow) for n in ("t5", "whisper", "marian"))],
)
def test_models_decode_as_alone(shared_bundle: Callable[..., crossfuse.Bundle], name: str) -> None:
    spec, bundle = CASES[name].make(), shared_bundle(f"coverage/{name}", TARGETS)
    rng = np.random.default_rng(1)
    contexts: list[dict[str, Any]] = []
    for seed in range(4):
        made = spec.sample({**spec.example_sizes, "batch": 1, "decoder_text": 3}, seed)
        contexts.append({n: t.numpy() for n, t in made.items() if not n.startswith("decoder")})
    with runtime.load(bundle.path, "ort-cpu") as session:
        encoded = [session.encode(inputs) for inputs in contexts]
        slots = Slots(session, encoded[0], 3)
        live: dict[int, tuple[int, list[int]]] = {}

        def check(slot: int, got: np.ndarray) -> None:
            which, ids = live[slot]
            expected = alone(session, contexts[which], ids)
            np.testing.assert_allclose(got, expected, atol=2e-5 * max(1, np.abs(expected).max()))

        def join(which: int, length: int) -> None:
            prompt = rng.integers(3, 90, length).tolist()
            (slot,), made = slots.join(encoded[which], [prompt])
            live[slot] = (which, prompt)
            check(slot, made["logits"][0, -1])

        def step() -> None:
            tokens = {slot: int(rng.integers(3, 90)) for slot in live}
            made = slots.step(tokens)
            for slot, token in tokens.items():
                live[slot][1].append(token)
                check(slot, made["logits"][slot, -1])

        join(0, 1)
        join(1, 7)
        step()
        join(2, 3)
        step()
        slots.leave([0])
        del live[0]
        step()
        join(3, 5)
        assert sorted(live) == [0, 1, 2]
        step()
