"""Sequences that come, go and are cancelled at random, tick by tick: each transcript is that of the
sequence alone, and every slot is free again."""

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
from crossfuse.runtime.context import Context
from crossfuse.runtime.generation.growing import Choices, growing
from crossfuse.runtime.generation.scheduler import QueueFullError, Scheduler
from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.ticket import Ticket
from crossfuse.runtime.session import Session
from unit.runtime.toy_decoder import LENGTH, VOCABULARY, toy_session

IMAGES = np.random.default_rng(9).standard_normal((5, VOCABULARY)).astype(np.float32)
SETTINGS: list[dict[str, Any]] = [
    {"eos_token_id": 0},
    {"max_new_tokens": 1},
    {"max_new_tokens": 5, "eos_token_id": [2, 6], "no_repeat_ngram_size": 2},
    {"do_sample": True, "seed": 3, "max_new_tokens": 7},
    {"do_sample": True, "seed": 8, "top_p": 0.8, "eos_token_id": 4},
    {"repetition_penalty": 2.5, "suppress_tokens": [1], "max_length": 12},
    {"min_new_tokens": 3, "eos_token_id": list(range(1, VOCABULARY)), "stop_sequences": [[3, 3]]},
]


def put(scheduler: Scheduler, context: Context, prompt: list[int], settings: Any) -> Ticket:
    session, ticket = scheduler.session, Ticket()
    choices = Choices.of(GenerationSettings.of(settings, session.generation), None)
    scheduler.put(growing(session, context, prompt, ticket, choices, asked=False))
    return ticket


def same(ticket: Ticket, alone: runtime.Generated) -> None:
    found = ticket.result(0)
    np.testing.assert_array_equal(found.sequences, alone.sequences)
    np.testing.assert_allclose(found.log_probs, alone.log_probs, rtol=1e-4, atol=1e-5)
    assert found.ended.tolist() == alone.ended.tolist()
    assert [one.token for one in ticket.take()] == alone.new_tokens[0].tolist()


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 40))]
)
def test_random_arrivals_lengths_and_cancellations(seed: int) -> None:
    session, rng = toy_session(), np.random.default_rng(seed)
    contexts = [session.encode(image=image[None]) for image in IMAGES]
    scheduler = Scheduler(session, int(rng.integers(1, 5)), 1000, "logits")
    asked: list[tuple[Ticket, int, list[int], Any]] = []
    cancelled = most = 0
    while len(asked) < 25 or not scheduler.idle:
        for _ in range(int(rng.integers(0, 4)) if len(asked) < 25 else 0):
            image = int(rng.integers(len(IMAGES)))
            prompt = rng.integers(0, VOCABULARY, rng.integers(1, 9)).tolist()
            settings = SETTINGS[int(rng.integers(len(SETTINGS)))]
            ticket = put(scheduler, contexts[image], prompt, settings)
            asked.append((ticket, image, prompt, settings))
        undone = [ticket for ticket, *_ in asked if not ticket.done]
        if undone and rng.random() < 0.2:
            undone[int(rng.integers(len(undone)))].cancel()
            cancelled += 1
        scheduler.tick()
        assert scheduler.slots is None or len(scheduler.slots.taken) == scheduler.live
        most = max(most, scheduler.live)
    assert cancelled > 0
    assert scheduler.live == scheduler.waiting == 0
    whole = 0
    for ticket, image, prompt, settings in asked:
        alone = runtime.generate(session, contexts[image], [prompt], **settings)
        if ticket.cancelled:
            begun = [one.token for one in ticket.take()]
            assert begun == alone.new_tokens[0].tolist()[: len(begun)]
        else:
            same(ticket, alone)
            whole += 1
    assert whole > 5
    assert most == scheduler.count


def test_a_cancelled_one_frees_its_slot_at_the_next_step() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    scheduler = Scheduler(session, 1, 10, "logits")
    first, second = (put(scheduler, context, [1], {}) for _ in range(2))
    scheduler.tick()
    assert (scheduler.live, scheduler.waiting) == (1, 1)
    first.cancel()
    scheduler.tick()
    assert (scheduler.live, scheduler.waiting) == (1, 0)
    assert len(second.take()) == 1
    third = put(scheduler, context, [1], {})
    third.cancel()
    scheduler.tick()
    assert scheduler.waiting == 0
    assert third.take() == []


def test_the_queue_has_an_end() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    scheduler = Scheduler(session, 1, 2, "logits")
    tickets = [put(scheduler, context, [1], {}) for _ in range(2)]
    with pytest.raises(QueueFullError, match="the queue is full: got 2 sequences wait"):
        put(scheduler, context, [1], {})
    scheduler.tick()
    tickets.append(put(scheduler, context, [2], {}))
    scheduler.end(InputError("closed"))
    assert scheduler.idle
    for ticket in tickets:
        with pytest.raises(InputError, match="closed"):
            ticket.result(0)


def test_contexts_of_another_size_wait_for_empty_slots() -> None:
    """The toy's step takes a bias of any width; its numbers beyond the vocabulary are cut here."""
    session = toy_session()
    step: Any = session.engine("step")
    compute = step.compute
    step.compute = lambda feeds: compute({**feeds, "bias": feeds["bias"][:, :VOCABULARY]})
    contexts = [session.encode(image=image[None]) for image in IMAGES]
    for i in (1, 3):
        wide = np.pad(contexts[i].tensors["bias"], ((0, 0), (0, 2)))
        contexts[i] = replace(contexts[i], tensors=MappingProxyType({"bias": wide}))
    scheduler = Scheduler(session, 3, 10, "logits")
    tickets = [put(scheduler, one, [1], {"max_new_tokens": 4}) for one in contexts]
    while not scheduler.idle:
        scheduler.tick()
        assert scheduler.live <= 2
    for ticket, context in zip(tickets, contexts, strict=True):
        same(ticket, runtime.generate(session, context, [1], max_new_tokens=4))


def test_an_engine_that_fails_is_told_to_those_in_it_and_the_next_are_served() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    scheduler = Scheduler(session, 2, 10, "logits")
    step: Any = session.engine("step")
    compute = step.compute

    def breaks(feeds: Any) -> Any:
        if (feeds["ids"] == 6).any():
            raise InputError("the engine refused the inputs")
        return compute(feeds)

    step.compute = breaks
    good, bad = (
        put(scheduler, context, [1], {"max_new_tokens": 1}),
        put(scheduler, context, [6], {}),
    )
    scheduler.tick()
    same(good, runtime.generate(session, context, [1], max_new_tokens=1))
    with pytest.raises(InputError, match="refused the inputs"):
        bad.result(0)
    # A token that the engine refuses in a step of all: the others go on.
    others = {"max_new_tokens": 4, "suppress_tokens": [6]}
    bad = put(scheduler, context, [1], {"suppress_tokens": [0, 1, 2, 3, 4, 5]})
    good = put(scheduler, context, [2], others)
    while not scheduler.idle:
        scheduler.tick()
    with pytest.raises(InputError, match="refused the inputs"):
        bad.result(0)
    assert [one.token for one in bad.take()] == [6]
    same(good, runtime.generate(session, context, [2], **others))
    step.compute = compute
    living = [put(scheduler, context, [n], {}) for n in (1, 2)]
    scheduler.tick()
    step.compute = lambda feeds: 1 / 0
    waits = put(scheduler, context, [3], {"max_new_tokens": 3})
    scheduler.tick()
    for ticket in living:
        with pytest.raises(crossfuse.CrossfuseError, match="did not foresee"):
            ticket.result(0)
    step.compute = compute
    while not scheduler.idle:
        scheduler.tick()
    same(waits, runtime.generate(session, context, [3], max_new_tokens=3))


@pytest.mark.parametrize(
    "name",
    ["bart", *(pytest.param(n, marks=pytest.mark.slow) for n in ("t5", "whisper", "marian"))],
)
def test_models_generate_as_alone(
    shared_bundle: Callable[..., crossfuse.Bundle], name: str
) -> None:
    """Texts of two lengths, where the context has one."""
    spec, bundle = CASES[name].make(), shared_bundle(f"coverage/{name}", TARGETS)
    rng = np.random.default_rng(1)
    with runtime.load(bundle.path, "ort-cpu") as session:
        contexts = [encoded(session, spec, seed) for seed in range(4)]
        scheduler = Scheduler(session, 3, 100, "logits")
        asked = []
        for i in range(9):
            prompt = rng.integers(3, 90, rng.integers(1, 12)).tolist()
            settings = {"max_new_tokens": int(rng.integers(2, 9)), "num_beams": 1}
            settings |= {"do_sample": True, "seed": i} if i % 3 == 2 else {}
            ticket = put(scheduler, contexts[i % 4], prompt, settings)
            asked.append((ticket, contexts[i % 4], prompt, settings))
            scheduler.tick()
        while not scheduler.idle:
            scheduler.tick()
        for ticket, context, prompt, settings in asked:
            same(ticket, runtime.generate(session, context, [prompt], **settings))


def encoded(session: Session, spec: Any, seed: int) -> Context:
    sizes = {**spec.example_sizes, "batch": 1, "decoder_text": 3}
    if "text" in sizes:
        sizes["text"] = 5 + 2 * (seed == 2)
    made = {name: tensor.numpy() for name, tensor in spec.sample(sizes, seed).items()}
    return session.encode({n: a for n, a in made.items() if not n.startswith("decoder")})


def test_lengths_reach_as_far_as_the_state() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    scheduler = Scheduler(session, 2, 10, "logits")
    ticket = put(scheduler, context, [1] * (LENGTH - 1), {})
    while not scheduler.idle:
        scheduler.tick()
    assert ticket.result(0).lengths.tolist() == [LENGTH]
