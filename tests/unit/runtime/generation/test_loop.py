"""Generation: against choosing token by token with the whole sequences' scores, one by one, and
against ``transformers`` on its models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crossfuse
from coverage.cases import CASES, TEXT, VISION
from coverage.table import TARGETS
from crossfuse import InputError, runtime
from crossfuse.runtime.generation.loop import generate
from crossfuse.runtime.generation.sampling import log_softmax
from crossfuse.runtime.session import Session
from unit.runtime.toy_decoder import IMAGES, LENGTH, VOCABULARY, logits_of, toy_session

PROMPTS = [[1], [3, 4, 5, 1, 6], [2, 2], [5, 1, 1, 4]]
"""Two for each image."""


def padded(rows: list[list[int]], left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids with a mask."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), 6), np.zeros((len(rows), width), int)
    for i, row in enumerate(rows):
        at = slice(width - len(row), None) if left else slice(len(row))
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


def greedy(prompt: list[int], image: np.ndarray, new: int, end: int | None = None) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + new:
        ids.append(int(logits_of(ids, image).argmax()))
        if ids[-1] == end:
            break
    return ids


def rows_of(found: runtime.Generated) -> list[list[int]]:
    return [found.sequences[i, :n].tolist() for i, n in enumerate(found.lengths)]


@pytest.mark.parametrize("form", ["lists", "lengths", "right mask", "left mask"])
def test_greedy_prompts_of_any_length_come_out_as_alone(form: str) -> None:
    session = toy_session()
    context = session.encode(image=IMAGES)
    ids, mask = padded(PROMPTS, left=form == "left mask")
    given: dict[str, Any] = {
        "lists": {"prompt": PROMPTS},
        "lengths": {"prompt": ids, "lengths": [len(row) for row in PROMPTS]},
    }.get(form, {"prompt": ids, "mask": mask})
    found = runtime.generate(session, context, max_new_tokens=7, eos_token_id=0, **given)
    expected = [greedy(row, IMAGES[i // 2], 7, 0) for i, row in enumerate(PROMPTS)]
    assert rows_of(found) == expected
    assert found.ended.tolist() == [row[-1] == 0 for row in expected]
    for i, row in enumerate(expected):
        begin = len(PROMPTS[i])
        chances = [
            log_softmax(logits_of(row[:n], IMAGES[i // 2]))[row[n]] for n in range(begin, len(row))
        ]
        np.testing.assert_allclose(found.log_probs[i, : len(chances)], chances, atol=1e-5)
        np.testing.assert_allclose(found.scores[i], sum(chances), rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.3},
        {"num_beams": 2, "early_stopping": True, "repetition_penalty": 1.4},
        {"num_beams": 2, "do_sample": True, "seed": 3},
        {"do_sample": True, "seed": 5, "top_p": 0.9},
        {"no_repeat_ngram_size": 2, "begin_suppress_tokens": [1, 2]},
    ],
)
def test_prompts_beside_others_come_out_as_alone(settings: dict[str, Any]) -> None:
    session = toy_session()
    both = {"max_length": 12, "eos_token_id": [0, 4], **settings}
    together = runtime.generate(session, session.encode(image=IMAGES), PROMPTS, **both)
    each = settings.get("num_return_sequences", 1)
    for i, row in enumerate(PROMPTS):
        if settings.get("do_sample") and i:
            break  # the others draw numbers of their own
        context = session.encode(image=IMAGES[[i // 2]])
        alone = runtime.generate(session, context, [row], **both)
        assert rows_of(alone) == rows_of(together)[i * each : (i + 1) * each]
        np.testing.assert_allclose(alone.scores, together.scores[i * each : (i + 1) * each], 1e-5)


def test_a_stream_gives_the_tokens_as_they_come() -> None:
    session = toy_session({"decoder_start_token_id": 3, "pad_token_id": 6, "eos_token_id": 0})
    context = session.encode(image=IMAGES)
    whole = runtime.generate(session, context, max_new_tokens=9)
    steps = runtime.generate(session, context, max_new_tokens=9, stream=True)
    rows: list[list[int]] = [[], []]
    returned: list[runtime.Generated] = []

    def relayed() -> Iterator[runtime.Streamed]:
        returned.append((yield from steps))

    for step in relayed():
        assert (step.tokens[~step.active] == 6).all()
        for row in np.flatnonzero(step.active):
            rows[row].append(int(step.tokens[row]))
    assert rows_of(returned[0]) == rows_of(whole)
    assert rows == [tokens.tolist() for tokens in whole.new_tokens]
    assert rows_of(whole) == [greedy([3], image, 9, 0) for image in IMAGES]


def test_sequences_stop_at_sequences() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    free = greedy([1], IMAGES[0], 8)
    found = runtime.generate(session, context, [1], max_new_tokens=8, stop_sequences=[free[3:5]])
    ends = [n for n in range(3, 10) if free[n - 2 : n] == free[3:5]]
    assert rows_of(found) == [free[: ends[0]]]
    assert found.ended.all()


def test_samples_follow_the_distribution() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    count = 3000
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 0, "seed": 11}
    settings["max_new_tokens"] = 1
    found = runtime.generate(session, context, [1, 2], num_return_sequences=count, **settings)
    shares = np.exp(log_softmax(logits_of([1, 2], IMAGES[0]).astype(np.float64) / 1.5))
    counts = np.bincount(found.sequences[:, -1], minlength=VOCABULARY)
    statistic = ((counts - count * shares) ** 2 / (count * shares)).sum()
    assert statistic < 22.5, "the 0.999 quantile of chi-square with 6 degrees of freedom"
    again = runtime.generate(session, context, [1, 2], num_return_sequences=50, **settings)
    np.testing.assert_array_equal(again.sequences, found.sequences[:50])


def test_a_hook_sees_tokens_and_changes_scores() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    seen: list[int] = []

    def hook(rows: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
        seen.append(len(rows[0]))
        scores[:, :] = -np.inf
        scores[:, len(rows[0]) % VOCABULARY] = 0
        return scores

    found = runtime.generate(session, context, [1], max_new_tokens=3, logits_hook=hook)
    assert (rows_of(found), seen) == ([[1, 1, 2, 3]], [1, 2, 3])


@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_in_front_of_prompts_count(beams: int) -> None:
    """Penalties, n-grams and lengths go by them, as where they are the prompt's own."""
    first, prompts = np.array([[3, 4, 4], [5, 6, 1]]), [[1], [2, 3], [4], [3]]
    session, plain = toy_session(first=3), toy_session()
    context = session.encode(image=IMAGES, prefix_ids=first)
    seen: list[list[int]] = []
    for settings in (
        {"max_length": 9},
        {"max_new_tokens": 5, "repetition_penalty": 3.0},
        {"max_new_tokens": 5, "bad_words_ids": [[4, 1, 2], [1, 4]]},
        {"max_new_tokens": 5, "min_length": 8, "eos_token_id": [0, 1, 2]},
    ):
        found = generate(session, context, prompts, num_beams=beams, **settings)

        def hook(rows: list[Any], scores: Any) -> Any:
            seen.append(rows[0].tolist())
            return scores

        again = generate(session, context, prompts, num_beams=beams, logits_hook=hook, **settings)
        np.testing.assert_array_equal(found.sequences, again.sequences)
        assert seen.pop()[:4] == [3, 4, 4, 1]
        assert found.prompts.tolist() == [1, 2, 1, 1]
        if "max_length" in settings:
            assert found.lengths.tolist() == [6] * 4
        if "repetition_penalty" in settings:
            free = generate(plain, plain.encode(image=IMAGES), prompts, num_beams=beams, **settings)
            assert (found.sequences != free.sequences).any()
    with pytest.raises(InputError, match="got 4 tokens. Expected fewer than 3|leaves no room"):
        generate(session, context, [1], max_length=3)


def test_the_last_token_needs_no_room() -> None:
    assert runtime.generate is generate
    session = toy_session()
    context = session.encode(image=IMAGES[:1])
    for settings in ({}, {"num_beams": 2}):
        found = runtime.generate(session, context, [1], max_length=LENGTH + 1, **settings)
        assert found.lengths.tolist() == [LENGTH + 1]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"num_beams": 2, "stream": True}, "no tokens to stream"),
        ({"suppress_tokens": list(range(VOCABULARY))}, "no token may come next.*sequence 0"),
        ({"prompt": [[1, 99]]}, "outside its table"),
        ({"prompt": [[1]] * 3}, "no multiple of the number of contexts"),
        ({"max_new_tokens": 99}, "holds fewer tokens"),
        ({"beams": 2}, "no such setting"),
    ],
)
def test_misuse_is_refused(given: dict[str, Any], error: str) -> None:
    session = toy_session()
    context = session.encode(image=IMAGES)
    with pytest.raises(InputError, match=error):
        runtime.generate(session, context, **{"prompt": [1], **given})


VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition": {"repetition_penalty": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "forced": {"forced_bos_token_id": 11, "forced_eos_token_id": 2, "suppress_tokens": [5, 6]},
    "words": {"bad_words_ids": [[7], [8, 9], [3, 4, 5]], "begin_suppress_tokens": [4, 5]},
    "beams": {"num_beams": 3},
    "early": {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    "n-best": {
        "num_beams": 4,
        "early_stopping": "never",
        "length_penalty": 0.6,
        "num_return_sequences": 4,
    },
    "two ends": {"num_beams": 3, "eos_token_id": [2, 40], "no_repeat_ngram_size": 3},
    "shorter": {"num_beams": 2, "length_penalty": -1.0, "min_length": 6},
}


def equal_to_the_library(
    spec: Any, generating: Callable[..., Any], session: Session, settings: dict[str, Any]
) -> None:
    """Tokens, scores and log-probabilities, for prompts of one token and of three."""
    made = spec.sample({**spec.example_sizes, "batch": 2}, 0)
    given = {name: made[name] for name in spec.context}
    context = session.encode({name: tensor.numpy() for name, tensor in given.items()})
    both = {"max_new_tokens": 12, "eos_token_id": 2, "pad_token_id": 1, **settings}
    for prompt in ([[2], [2]], [[2, 5, 9], [2, 7, 8]]):
        found = runtime.generate(session, context, prompt, **both)
        with torch.no_grad():
            theirs = generating(
                given,
                torch.tensor(prompt),
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **both,
            )
        sequences = theirs.sequences.numpy()
        for row, length in enumerate(found.lengths):
            assert found.sequences[row, :length].tolist() == sequences[row, :length].tolist()
            assert (sequences[row, length:] == 1).all()
        if "num_beams" in settings:
            np.testing.assert_allclose(found.scores, theirs.sequences_scores.numpy(), atol=1e-4)
        else:
            steps = torch.stack(theirs.scores, 1).log_softmax(-1).numpy()
            for row, tokens in enumerate(found.new_tokens):
                chances = steps[row, np.arange(len(tokens)), tokens]
                np.testing.assert_allclose(found.log_probs[row, : len(tokens)], chances, atol=1e-4)


def seq2seq(model: Any) -> Callable[..., Any]:
    from transformers import GenerationMixin

    def run(given: Any, prompt: Any, **settings: Any) -> Any:
        return GenerationMixin.generate(
            model, **given, decoder_input_ids=prompt, decoder_start_token_id=2, **settings
        )

    return run


def captions(model: Any) -> Callable[..., Any]:
    """BLIP's decoder over the image's states, as the class's own ``generate`` calls it."""

    def run(given: Any, prompt: Any, **settings: Any) -> Any:
        states = model.vision_model(given["pixel_values"]).last_hidden_state
        return model.text_decoder.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.long),
            **settings,
        )

    return run


def blip() -> Any:
    import transformers as hf

    torch.manual_seed(0)
    text = TEXT | {"encoder_hidden_size": 32, "projection_dim": 16, "bos_token_id": 2}
    config = hf.BlipConfig(
        text_config=text | {"sep_token_id": 2, "pad_token_id": 1},
        vision_config=VISION,
        projection_dim=16,
    )
    return crossfuse.huggingface_spec(hf.BlipForConditionalGeneration(config).eval())


MODELS = ["bart", "t5", "marian", "whisper", "vision_encoder_decoder", "blip"]


@pytest.fixture(scope="module")
def opened(
    shared_bundle: Callable[..., crossfuse.Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Any, Session]]]:
    kept: dict[str, tuple[Any, Session]] = {}

    def get(name: str) -> tuple[Any, Session]:
        if name not in kept:
            if name == "blip":
                spec = blip()
                path = tmp_path_factory.mktemp("blip") / "bundle"
                crossfuse.export(spec, path, ["ort-cpu"], quick=True)
            else:
                spec = CASES[name].make()
                path = Path(shared_bundle(f"coverage/{name}", TARGETS).path)
            kept[name] = spec, runtime.load(path, "ort-cpu")
        return kept[name]

    yield get
    for _, session in kept.values():
        session.close()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "name", ["bart", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])]
)
def test_tokens_are_those_of_the_library(
    opened: Callable[[str], tuple[Any, Session]], name: str, variant: str
) -> None:
    spec, session = opened(name)
    generating = captions(spec.module) if name == "blip" else seq2seq(spec.module)
    equal_to_the_library(spec, generating, session, VARIANTS[variant])


def test_the_bundles_own_settings_are_used(
    opened: Callable[[str], tuple[Any, Session]],
) -> None:
    spec, session = opened("bart")
    config = spec.module.generation_config
    assert session.generation["decoder_start_token_id"] == config.decoder_start_token_id == 2
    context = session.encode(
        {n: t.numpy() for n, t in spec.sample(spec.example_sizes, 0).items() if n in spec.context}
    )
    found = runtime.generate(session, context, max_new_tokens=4)
    assert (found.sequences[:, 0] == 2).all()
