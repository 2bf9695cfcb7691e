"""Decoding token by token: what a step computes is what eager PyTorch computes for whole
sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from coverage.cases import CASES
from coverage.rows import TARGETS
from crossfuse import InputError, ModelSpec, runtime
from crossfuse.core.tensors import TensorSpec
from crossfuse.runtime.context import Context
from crossfuse.runtime.decoding import DecodingState
from unit.runtime.stub_stage import StubStage
from unit.runtime.toy_decoder import IMAGES, LENGTH, logits_of, toy_session

MODELS = [
    "bart",
    "t5",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("whisper", "mt5", "marian", "pegasus")
    ),
]
IDS = "decoder_input_ids"


@pytest.fixture
def exported(
    shared_bundle: Callable[..., crossfuse.Bundle],
) -> Callable[[str], tuple[ModelSpec, crossfuse.Bundle]]:
    # The targets of the coverage suite, whose bundles these are.
    return lambda name: (CASES[name].make(), shared_bundle(f"coverage/{name}", TARGETS))


def inputs_of(
    spec: ModelSpec, batch: int, length: int, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    sizes = {**spec.example_sizes, "batch": batch, "decoder_text": length}
    made = {name: t.numpy() for name, t in spec.sample(sizes, seed).items()}
    return made, made.pop(IDS)


def eager(spec: ModelSpec, context: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    given = {
        name: torch.from_numpy(np.repeat(a, len(ids) // len(a), axis=0))
        for name, a in context.items()
    }
    with torch.no_grad():
        return spec.module(**given, **{IDS: torch.from_numpy(ids)}).logits.numpy()


@pytest.mark.parametrize("target", [pytest.param("onnx", marks=pytest.mark.slow), "ort-cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_whole_sequences(exported: Any, name: str, target: str) -> None:
    """Three sequences per context, different lengths of context, up to 20 tokens."""
    spec, bundle = exported(name)
    assert bundle.manifest.decode.tokens == IDS
    context, _ = inputs_of(spec, 2, 5)
    ids = np.random.default_rng(0).integers(3, 98, (6, 20))
    expected = eager(spec, context, ids)
    with runtime.load(bundle.path, target) as session:
        state = session.start(session.encode(**context), batch=6)
        addresses = {n: a.ctypes.data for n, a in state.memory.tensors.items()}
        for i in range(ids.shape[1]):
            tokens = ids[:, i] if i % 2 else {IDS: ids[:, i]}
            got = session.step(state, tokens)["logits"]
            np.testing.assert_allclose(
                got[:, 0], expected[:, i], atol=5e-5 * max(1, np.abs(expected).max())
            )
        assert state.position == 20
        assert {n: a.ctypes.data for n, a in state.memory.tensors.items()} == addresses, (
            "the state stays where it is"
        )


def test_a_step_costs_one_token(exported: Any) -> None:
    """The step stage's work doesn't know how many tokens there are."""
    _, bundle = exported("bart")
    stages = bundle.manifest.stages
    assert stages["step"].flops < stages["query"].flops
    shapes = {spec.name: spec.shape for spec in stages["step"].inputs}
    assert shapes[IDS] == shapes["position"] == ("batch", "new_tokens")
    length = bundle.manifest.decode.length
    states = [shape for name, shape in shapes.items() if name.startswith("state:")]
    assert len(states) == 4
    assert all(shape[:2] == ("batch", length) for shape in states)


def test_beams_are_reordered_and_rewound(exported: Any) -> None:
    spec, bundle = exported("bart")
    context, _ = inputs_of(spec, 1, 5)
    ids = np.random.default_rng(1).integers(3, 98, (3, 6))
    with runtime.load(bundle.path, "ort-cpu") as session:
        state = session.start(session.encode(**context), batch=3)
        for i in range(4):
            session.step(state, ids[:, i])
        state.reorder([2, 0, 2])
        ids[:, :4] = ids[[2, 0, 2], :4]
        got = session.step(state, ids[:, 4])["logits"][:, 0].copy()
        expected = eager(spec, context, ids)
        np.testing.assert_allclose(got, expected[:, 4], atol=1e-4)
        state.rewind(2)
        ids[:, 2] = 5
        np.testing.assert_allclose(
            session.step(state, ids[:, 2])["logits"][:, 0],
            eager(spec, context, ids)[:, 2],
            atol=1e-4,
        )


def test_misuse_is_refused(exported: Any, shared_bundle: Callable[..., crossfuse.Bundle]) -> None:
    spec, bundle = exported("bart")
    context, _ = inputs_of(spec, 2, 5)
    with runtime.load(bundle.path, "ort-cpu") as session:
        encoded = session.encode(**context)
        state = session.start(encoded)
        assert (state.batch, state.position, state.nbytes > 0) == (2, 0, True)
        with pytest.raises(InputError, match="no multiple of the number of contexts"):
            session.start(encoded, batch=3)
        with pytest.raises(InputError, match="one id per sequence"):
            session.step(state, np.array([1, 2, 3]))
        for wrong in (
            {},
            {"ids": np.array([1, 2])},
            {IDS: np.array([1, 2]), "more": np.array([1])},
        ):
            with pytest.raises(InputError, match="the ids alone"):
                session.step(state, wrong)
        with pytest.raises(InputError, match="the ids alone"):
            session.step(state)
        with pytest.raises(InputError, match="one id per sequence"):
            session.step(state, np.array([0.5, 1.0]))
        with pytest.raises(InputError, match="one position per sequence"):
            state.reorder([0])
        with pytest.raises(InputError, match="can't rewind"):
            state.rewind(1)
        for _ in range(state.length):
            session.step(state, np.array([4, 5]))
        with pytest.raises(InputError, match="the state is full.*at most 64"):
            session.step(state, np.array([4, 5]))
    plain = shared_bundle("qformer", size="tiny")
    with runtime.load(plain.path) as session:
        given = {
            t.name: np.ones([2 if isinstance(s, str) else s for s in t.shape], t.dtype)
            for t in session.stages["context"].inputs
        }
        with pytest.raises(InputError, match="no step stage"):
            session.start(session.encode(**given))


def test_ragged_prompts_and_what_follows_equal_whole_sequences(exported: Any) -> None:
    """Eight prompts of 1 to 40 tokens, padded on either side, then tokens, beams and slots."""
    spec, bundle = exported("bart")
    context, _ = inputs_of(spec, 2, 5)
    rng = np.random.default_rng(2)
    ids = rng.integers(3, 98, (8, 48))
    lengths = np.array([1, 40, 7, 13, 2, 28, 5, 19])
    expected = eager(spec, context, ids)
    close = {"atol": 5e-5 * max(1, np.abs(expected).max())}
    left = np.zeros((8, 40), int)
    for row, count in enumerate(lengths):
        left[row, 40 - count :] = ids[row, :count]
    with runtime.load(bundle.path, "ort-cpu") as session:
        encoded = session.encode(**context)
        state = session.start(encoded, prompt=ids[:, :40], lengths=lengths)
        mask = np.arange(40) >= 40 - lengths[:, None]
        other = session.start(encoded, prompt=left, mask=mask)
        for row, count in enumerate(lengths):
            for made in (state, other):
                got = made.outputs["logits"][row]
                np.testing.assert_allclose(got[:count], expected[row, :count], **close)
                np.testing.assert_allclose(got[-1], expected[row, count - 1], **close)
        assert state.positions.tolist() == lengths.tolist()
        got = session.step(state, ids[np.arange(8), lengths])["logits"][:, 0]
        np.testing.assert_allclose(got, expected[np.arange(8), lengths], **close)
        # Two sequences get three and one more; the others stay as they are.
        counts = np.array([3, 0, 0, 1, 0, 0, 0, 0])
        more = np.zeros((8, 3), int)
        more[0], more[3, 0] = ids[0, 2:5], ids[3, 14]
        got = state.append(more, counts)["logits"]
        np.testing.assert_allclose(got[0], expected[0, 2:5], **close)
        np.testing.assert_allclose(got[3, -1], expected[3, 14], **close)
        np.testing.assert_allclose(got[1, -1], expected[1, 40], **close)
        fork = state.fork([2, 2, 6, 5])
        tokens = np.array([ids[2, 8], 4, ids[6, 6], ids[5, 29]])
        got = session.step(fork, tokens)["logits"][:, 0]
        for row, (sequence, place) in enumerate([(2, 8), (2, 8), (6, 6), (5, 29)]):
            whole = ids[[sequence], : place + 1].copy()
            whole[0, place] = tokens[row]
            one = {name: array[[sequence // 4]] for name, array in context.items()}
            np.testing.assert_allclose(got[row], eager(spec, one, whole)[0, -1], **close)
        state.free([0])
        state.truncate([0, 12, *state.positions[2:]])
        got = state.append([[*ids[0, :3]], [ids[1, 12]], *[[]] * 6])["logits"]
        np.testing.assert_allclose(got[0, :3], expected[0, :3], **close)
        np.testing.assert_allclose(got[1, -1], expected[1, 12], **close)


class Bidirectional(nn.Module):
    """Tokens that see later ones, or that are mixed by a sum over all of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words = nn.Embedding(50, 16)
        self.own, self.cross = (nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        x = self.words(ids)
        if self.how == "mixed":
            x = x + x.mean(1, keepdim=True)
        mask = (
            None
            if self.how == "sees later"
            else nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        )
        x = x + self.own(x, x, x, attn_mask=mask, need_weights=False)[0]
        return x + self.cross(x, memory, memory, need_weights=False)[0]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("sees later", "sees later tokens"),
        ("mixed", "ReduceMean makes what stands for a token of other tokens, too"),
    ],
)
def test_what_cannot_be_decoded_is_refused(tmp_path: Path, how: str, error: str) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(
        Bidirectional(how).eval(),
        {"ids": torch.randint(0, 50, (2, 5)), "memory": torch.randn(2, 7, 16)},
        {"ids": {0: "batch:1:16", 1: "tokens:1:32"}, "memory": {0: "batch", 1: "keys:1:32"}},
        ("memory",),
        decode="ids",
    )
    with pytest.raises(crossfuse.CrossfuseError, match=error):
        crossfuse.export(spec, tmp_path / "b")


def test_an_input_with_the_positions_name_is_refused(tmp_path: Path) -> None:
    class Positions(Bidirectional):
        def forward(self, position: Tensor, memory: Tensor) -> Tensor:
            return super().forward(position, memory)

    spec = ModelSpec(
        Positions("in order").eval(),
        {"position": torch.randint(0, 50, (2, 5)), "memory": torch.randn(2, 7, 16)},
        {"position": {0: "batch:1:16", 1: "tokens:1:32"}, "memory": {0: "batch", 1: "keys:1:32"}},
        ("memory",),
        decode="position",
    )
    with pytest.raises(InputError, match="name that the number of tokens takes"):
        crossfuse.export(spec, tmp_path / "b")


def test_sequences_grow_by_any_number_of_tokens() -> None:
    session = toy_session()
    state = session.start(session.encode(image=IMAGES), 4)
    rows: list[list[int]] = [[], [], [], []]
    for more in ([[1], [2, 3, 4], [5], [6, 1]], [[2, 2], [], [3], []], [[], [1], [], [4, 4, 4]]):
        made = state.append(more)["logits"]
        for row, new in enumerate(more):
            rows[row] += new
            for back in range(len(new)):
                place = len(new) - 1 - back
                whole = rows[row][: len(rows[row]) - back]
                expected = logits_of(whole, IMAGES[row // 2])
                np.testing.assert_allclose(made[row, place], expected, rtol=1e-6)
            expected = logits_of(rows[row], IMAGES[row // 2])
            np.testing.assert_allclose(made[row, -1], expected, rtol=1e-6)
        assert state.positions.tolist() == [len(row) for row in rows]
        assert state.position == max(len(row) for row in rows)
        assert [state.ids[i, : len(row)].tolist() for i, row in enumerate(rows)] == rows


def test_states_fork_truncate_and_free() -> None:
    session = toy_session()
    state = session.start(session.encode(image=IMAGES), prompt=[[1, 2], [3, 4, 5]])
    forked = state.fork([0, 0, 1, 1])
    assert forked.context is state.context
    got = session.step(forked, np.array([1, 2, 3, 4]))["logits"][:, 0]
    for row, ids in enumerate(([1, 2, 1], [1, 2, 2], [3, 4, 5, 3], [3, 4, 5, 4])):
        np.testing.assert_allclose(got[row], logits_of(ids, IMAGES[row // 2]), rtol=1e-6)
    assert state.positions.tolist() == [2, 3]
    crossed = state.fork([1, 0, 0])
    assert crossed.context.count == 3
    got = session.step(crossed, np.array([6, 6, 5]))["logits"][:, 0]
    for row, (ids, image) in enumerate((([3, 4, 5, 6], 1), ([1, 2, 6], 0), ([1, 2, 5], 0))):
        np.testing.assert_allclose(got[row], logits_of(ids, IMAGES[image]), rtol=1e-6)
    state.truncate(2)
    assert state.positions.tolist() == [2, 2]
    state.free([1])
    got = state.append([[], [6, 6]])["logits"][:, -1]
    for row, ids in enumerate(([1, 2], [6, 6])):
        np.testing.assert_allclose(got[row], logits_of(ids, IMAGES[row]), rtol=1e-6)
    for wrong in ([2, 3], [-1, 0], [1], 99.5):
        with pytest.raises(InputError, match="can't truncate|no whole numbers"):
            state.truncate(wrong)
    for ask in (state.free, state.fork):
        with pytest.raises(InputError, match="no such sequences"):
            ask([2])
    with pytest.raises(InputError, match="no sequence gets a token"):
        state.append([[], []])
    with pytest.raises(InputError, match="no inputs beside the tokens"):
        state.append([[1], [1]], beside={"mask": np.ones((2, 1))})
    with pytest.raises(InputError, match="outside its table"):
        state.append([[1], [7]])
    state.append([[], [1] * 14])
    with pytest.raises(InputError, match="the state is full.*16 tokens and 1 more"):
        state.append([[1], [1]])


def test_orders_of_any_kind_carry_the_whole_state() -> None:
    """Random steps and orders, also from one context's sequences to the other's; each row of the
    memory is what its sequence wrote."""
    session, generator = toy_session(), np.random.default_rng(4)
    state = session.start(session.encode(image=IMAGES), 6, prompt=[[1]])
    kept = state.memory.tensors["state:kept"]
    kept[3:, 0] += 0.25  # of the other context's sequences the same ids mean another state
    shadow = kept.copy()
    for turn in range(80):
        order = np.arange(6)
        if generator.integers(3):  # within each context, as beams do
            order = np.concatenate([generator.integers(0, 3, 3), generator.integers(3, 6, 3)])
        elif turn > 40:
            order = generator.integers(0, 6, 6)
        state.reorder(order.tolist())
        shadow = shadow[order]
        if generator.integers(4) == 0:
            state.truncate(int(generator.integers(1, 4)))
        if state.position == LENGTH:
            state.truncate(2)
        tokens = generator.integers(1, 3, 6)
        shadow[np.arange(6), state.positions, 0] = tokens * (state.positions + 1)
        session.step(state, tokens)
        used = np.arange(LENGTH) < state.positions[:, None]
        np.testing.assert_array_equal(kept[used], shadow[used])


HEADS, LONGEST, WIDTH = 2, 8, 3


def add_up(feeds: dict[str, Any]) -> list[np.ndarray]:
    """A step that writes its token into the state and gives the sum of all tokens so far."""
    state = np.array(feeds["state:k"])
    at = int(feeds["position"][0])
    state[:, at] = feeds["ids"].reshape(-1, 1, 1)
    logits = state[:, : at + 1, 0, 0].sum(1)[:, None, None] + feeds["bias"]
    return [logits.astype(np.float32), state]


def state_of(batch: int) -> DecodingState:
    inputs = (
        TensorSpec("ids", "int64", ("batch", 1)),
        TensorSpec("bias", "float32", (1,)),
        TensorSpec("position", "int64", (1,)),
        TensorSpec("state:k", "float32", ("batch", LONGEST, HEADS, WIDTH)),
    )
    stage = StubStage([spec.name for spec in inputs], ["logits", "next:k"], add_up)
    context = Context({"bias": np.float32([0.5]), "unused": np.ones(3)}, (), 1, None, "o")
    return DecodingState(context, stage, inputs, "ids", batch, LONGEST)


def test_a_states_memory_is_made_once_for_the_longest_sequence() -> None:
    state = state_of(batch=4)
    assert state.memory.tensors["state:k"].shape == (4, LONGEST, HEADS, WIDTH)
    assert state.nbytes == 4 * LONGEST * HEADS * WIDTH * 4
    assert (state.position, state.ids.shape, state.ids.dtype) == (0, (4, LONGEST), np.int64)


def test_steps_reorder_and_rewind_as_sums_do() -> None:
    state = state_of(batch=2)
    tokens = np.array([[1, 10], [2, 20], [3, 30]])
    for i, given in enumerate(tokens):
        got = state.append(given[:, None])["logits"][:, 0, 0]
        np.testing.assert_array_equal(got, tokens[: i + 1].sum(0) + 0.5)
    state.reorder([1, 1])
    state.rewind(1)
    got = state.append(np.array([[5], [6]]))["logits"][:, 0, 0]
    np.testing.assert_array_equal(got, [10 + 5 + 0.5, 10 + 6 + 0.5])
    assert state.position == 2


def test_a_step_stage_of_one_position_takes_tokens_one_by_one() -> None:
    state = state_of(batch=2)
    made = state.append([[1, 2, 3], [10, 20, 30]])["logits"][..., 0]
    assert made.tolist() == [[1.5, 3.5, 6.5], [10.5, 30.5, 60.5]]
    for uneven in (lambda: state.append([[1], [1, 2]]), lambda: state.free([0])):
        with pytest.raises(InputError, match="one position for all.*Export the model again"):
            uneven()
    state.free([0, 1])
    assert state.append([[4], [5]])["logits"][:, 0, 0].tolist() == [4.5, 5.5]


@pytest.mark.parametrize("order", [[0], [0, 2], [-1, 0], [0, 0, 1], [0.0, 1.0]])
def test_an_order_that_is_none_is_refused(order: list[int]) -> None:
    with pytest.raises(InputError, match="one position per sequence|no whole numbers"):
        state_of(batch=2).reorder(order)


def test_the_end_of_the_memory_is_told() -> None:
    state = state_of(batch=1)
    for _ in range(LONGEST):
        state.append(np.array([[1]]))
    with pytest.raises(InputError, match=f"state is full.*{LONGEST}"):
        state.append(np.array([[1]]))
    for place in (LONGEST + 1, -1, 1.5):
        with pytest.raises(InputError, match="can't rewind"):
            state.rewind(place)
    state.rewind()
    assert state.position == 0
