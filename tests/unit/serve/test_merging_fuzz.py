"""Requests at random from many threads: honest ones get their own answers, dishonest ones are
refused and touch no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import CrossfuseError, EngineError
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions, open_engine
from crossfuse.serve.merging import Merging
from crossfuse.serve.metrics import Totals
from crossfuse.serve.request_engine import Request, RequestEngine, UnexpectedError

Arrays = dict[str, Any]

WIDTH, WORDS = 8, 11
FEWEST, MOST = 2, 9
"""Range of the whole bundle's batch."""

THREADS = 4
PER_EXAMPLE = 40


class Reader(nn.Module):
    """Words that look at an image's features, with a bias for each pair and one temperature for
    all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Tensor, ids: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        query = self.embed(ids)[:, None] * scale
        key, value = self.key(features)[:, None], self.value(features)[:, None]
        return nn.functional.scaled_dot_product_attention(query, key, value, bias[:, None])[:, 0]


def reader_spec(batch: str) -> ModelSpec:
    torch.manual_seed(0)
    inputs = {
        "features": torch.randn(2, 5, WIDTH),
        "ids": torch.randint(0, WORDS, (2, 3)),
        "bias": torch.randn(2, 3, 5),
        "scale": torch.ones(1),
    }
    dynamic = {
        "features": {0: batch, 1: "image:1:6"},
        "ids": {0: "batch", 1: "text:1:6"},
        "bias": {0: "batch", 1: "text", 2: "image"},
    }
    return ModelSpec(Reader().eval(), inputs, dynamic, context=("features",), name="reader")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crossfuse.export(reader_spec("batch"), tmp_path_factory.mktemp("fuzz") / "split").path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = reader_spec(f"batch:{FEWEST}:{MOST}")
    return crossfuse.export(spec, tmp_path_factory.mktemp("fuzz") / "whole", whole=True).path


def honest(
    rows: int, text: int, image: int, context: int, contexts: int, scale: int, seed: int
) -> Arrays:
    """A request that is in order; ``context`` says which image it is about, so that several
    requests share one."""
    images, rng = np.random.default_rng([context, image, contexts]), np.random.default_rng(seed)
    return {
        "features": images.standard_normal((contexts, image, WIDTH)).astype(np.float32),
        "ids": rng.integers(0, WORDS, (rows, text)),
        "bias": rng.standard_normal((rows, text, image)).astype(np.float32),
        "scale": np.float32([scale]),
    }


def _more(array: Any, axis: int, by: int) -> Any:
    """The array with more or fewer along an axis."""
    return np.take(array, np.arange(array.shape[axis] + by) % array.shape[axis], axis=axis)


def _bent(arrays: Arrays, name: str, change: Callable[[Any], Any]) -> Arrays:
    return arrays | {name: change(arrays[name])}


SPOILS: dict[str, Callable[[Arrays], Arrays]] = {
    "ids have a row more": lambda a: _bent(a, "ids", lambda x: _more(x, 0, 1)),
    "bias has a row more": lambda a: _bent(a, "bias", lambda x: _more(x, 0, 1)),
    "ids have a row less": lambda a: _bent(a, "ids", lambda x: x[1:]),
    "bias has twice the rows": lambda a: _bent(a, "bias", lambda x: np.concatenate([x, x])),
    "ids have no rows": lambda a: _bent(a, "ids", lambda x: x[:0]),
    "queries have no rows": lambda a: _bent(
        _bent(a, "ids", lambda x: x[:0]), "bias", lambda x: x[:0]
    ),
    "nothing has rows": lambda a: {name: x[:0] if name != "scale" else x for name, x in a.items()},
    "too many rows": lambda a: {
        n: np.concatenate([x] * 40)[:40] if n != "scale" else x for n, x in a.items()
    },
    "texts differ": lambda a: _bent(a, "ids", lambda x: _more(x, 1, 1)),
    "no text": lambda a: _bent(_bent(a, "ids", lambda x: x[:, :0]), "bias", lambda x: x[:, :0]),
    "images differ": lambda a: _bent(a, "bias", lambda x: _more(x, 2, 1)),
    "features of another image": lambda a: _bent(a, "features", lambda x: _more(x, 1, 1)),
    "too long": lambda a: _bent(
        _bent(a, "ids", lambda x: _more(x, 1, 9)), "bias", lambda x: _more(x, 1, 9)
    ),
    "another width": lambda a: _bent(a, "features", lambda x: x[..., :4]),
    "two scales": lambda a: _bent(a, "scale", lambda x: np.concatenate([x, x])),
    "a scalar": lambda a: _bent(a, "scale", lambda x: x[0]),
    "flat ids": lambda a: _bent(a, "ids", lambda x: x.reshape(-1)),
    "an axis more": lambda a: _bent(a, "bias", lambda x: x[None]),
    "int32": lambda a: _bent(a, "ids", lambda x: x.astype(np.int32)),
    "float64": lambda a: _bent(a, "bias", lambda x: x.astype(np.float64)),
    "big-endian": lambda a: _bent(a, "bias", lambda x: x.astype(">f4")),
    "truth values": lambda a: _bent(a, "ids", lambda x: x > 3),
    "objects": lambda a: _bent(a, "features", lambda x: x.astype(object)),
    "texts": lambda a: _bent(a, "ids", lambda x: x.astype(str)),
    "a list": lambda a: _bent(a, "ids", lambda x: x.tolist()),
    "nothing": lambda a: _bent(a, "bias", lambda _: None),
    "NaN": lambda a: _bent(a, "bias", lambda x: np.full_like(x, np.nan)),
    "NaN in the context": lambda a: _bent(a, "features", lambda x: np.full_like(x, np.nan)),
    "unknown words": lambda a: _bent(a, "ids", lambda x: x + 10**6),
    **{
        f"without {gone}": lambda a, gone=gone: {n: x for n, x in a.items() if n != gone}
        for gone in reader_spec("b").inputs
    },
    **{
        f"with {name!r}": lambda a, name=name: a | {name: a["ids"]}
        for name in ("self", "context", "inputs", "kwargs", "", "IDS", "ids ", "k\x1b[2J")
    },
    "renamed": lambda a: {("id" if n == "ids" else n): x for n, x in a.items()},
    "empty": lambda _: {},
}

FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda x: x,
    np.asfortranarray,
    lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
)
"""Ways in which an honest array may lie in memory."""


@dataclass(frozen=True)
class Draw:
    """One request; honest where nothing spoils it."""

    arrays: Arrays
    spoil: str | None


@st.composite
def draws(draw: st.DrawFn, *, fan_out: bool) -> Draw:
    contexts = draw(st.sampled_from([1, 1, 2]) if fan_out else st.integers(FEWEST, 4))
    rows = contexts * draw(st.integers(1, 3)) if fan_out else contexts
    sizes = {"text": draw(st.integers(1, 2)), "image": draw(st.sampled_from([2, 5]))}
    arrays = honest(
        rows,
        **sizes,
        context=draw(st.integers(0, 1)),
        contexts=contexts,
        scale=1,
        seed=draw(st.integers(0, 2**31)),
    )
    arrays["scale"] = np.float32([draw(st.sampled_from([1, 1, 2]))])
    spoil = draw(st.none() | st.sampled_from(sorted(SPOILS)))
    form = draw(st.sampled_from(FORMS))
    laid = {name: form(array) for name, array in arrays.items()}
    return Draw(laid if spoil is None else SPOILS[spoil](laid), spoil)


def ask_from_threads(engine: RequestEngine, requests: list[Draw], cuts: list[int]) -> None:
    """Each thread asks its share of the requests, several at once; every answer is compared."""
    wrong: list[str] = []
    start = threading.Barrier(THREADS)

    def work(share: list[Draw]) -> None:
        start.wait()
        at = 0
        for cut in [*cuts, len(share)]:
            chunk, at = share[at : at + cut], at + cut
            answers = engine.answer([Request(drawn.arrays) for drawn in chunk])
            wrong.extend(
                found
                for drawn, answer in zip(chunk, answers, strict=True)
                if (found := _judge(drawn, answer, engine))
            )

    def guarded(share: list[Draw]) -> None:
        try:
            work(share)
        except Exception as error:  # noqa: BLE001 -- a case that fails is a result, and others go on
            wrong.append(f"the engine raised {error!r}")

    threads = [
        threading.Thread(target=guarded, args=(requests[i::THREADS],)) for i in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def _judge(drawn: Draw, answer: Any, engine: RequestEngine) -> str | None:
    """What is wrong with an answer."""
    if drawn.spoil is not None:
        refused = isinstance(answer, InputError) and not isinstance(answer, UnexpectedError)
        return None if refused else f"{drawn.spoil}: {answer}"
    if isinstance(answer, CrossfuseError):
        return f"an honest request was refused: {answer}"
    expected = engine.session.run(drawn.arrays)
    for name, array in expected.items():
        if answer[name].shape != array.shape or not np.allclose(
            answer[name], array, rtol=1e-4, atol=1e-5
        ):
            return f"an honest request got {name} of another"
    return None


def fuzz(path: Path, examples: int, *, fan_out: bool, random: bool) -> Totals:
    meter = Totals()
    engine = open_engine(
        path, EngineOptions(cache_mb=1, max_rows=16), meter=meter, limits=Limits(max_batch=32)
    )
    assert engine.merges

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not random,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(draws(fan_out=fan_out), min_size=PER_EXAMPLE, max_size=PER_EXAMPLE),
        st.lists(st.integers(1, 5), max_size=3),
    )
    def check(requests: list[Draw], cuts: list[int]) -> None:
        ask_from_threads(engine, requests, cuts)

    check()
    engine.session.close()
    return meter


@pytest.mark.parametrize("fan_out", [True, False], ids=["split", "whole"])
def test_short(split: Path, whole: Path, fan_out: bool) -> None:
    meter = fuzz(split if fan_out else whole, 12, fan_out=fan_out, random=False)
    assert max(meter.rows) > (6 if fan_out else 4), "nothing was merged"


@pytest.mark.slow
@pytest.mark.parametrize("fan_out", [True, False], ids=["split", "whole"])
def test_ten_thousand(split: Path, whole: Path, fan_out: bool) -> None:
    fuzz(split if fan_out else whole, 10_000 // PER_EXAMPLE, fan_out=fan_out, random=True)


@pytest.mark.parametrize("fan_out", [True, False], ids=["split", "whole"])
def test_each_way_to_be_wrong_among_honest_neighbours(
    split: Path, whole: Path, fan_out: bool
) -> None:
    """Beside each spoilt request stands another whose surplus would make up for what it lacks."""
    engine = open_engine(split if fan_out else whole, EngineOptions(), limits=Limits(max_batch=32))
    for i, (what, spoil) in enumerate(SPOILS.items()):
        one, two, mine = (
            honest(2, 2, 5, 0, 1 if fan_out else 2, 1, seed=100 * i + k) for k in range(3)
        )
        requests = [
            Draw(spoil(one), what),
            Draw(mine, None),
            Draw(spoil(two), what),
            Draw(mine, None),
        ]
        answers = engine.answer([Request(drawn.arrays) for drawn in requests])
        assert not [
            found
            for drawn, answer in zip(requests, answers, strict=True)
            if (found := _judge(drawn, answer, engine))
        ]


@pytest.mark.parametrize("fan_out", [True, False], ids=["split", "whole"])
def test_two_that_make_up_for_each_other(split: Path, whole: Path, fan_out: bool) -> None:
    """Merged, their rows would be as many as they should be, and the rows between them would be
    another's."""
    engine = open_engine(split if fan_out else whole, EngineOptions())
    lacking, surplus, mine = (honest(2, 2, 5, 0, 1 if fan_out else 2, 1, seed=k) for k in range(3))
    for name in ("ids", "bias"):
        pair = [
            _bent(lacking, name, lambda x: x[:1]),
            _bent(surplus, name, lambda x: _more(x, 0, 1)),
        ]
        answers = engine.answer([Request(pair[0]), Request(mine), Request(pair[1])])
        assert _judge(Draw(mine, None), answers[1], engine) is None
        assert isinstance(answers[0], InputError)
        assert isinstance(answers[2], InputError)


def test_queries_under_an_id_are_checked_with_their_context(split: Path) -> None:
    engine = open_engine(split, EngineOptions())
    whole_request = honest(2, 2, 5, 0, 2, 1, seed=0)
    queries = {name: array for name, array in whole_request.items() if name != "features"}
    spoilt = [
        _bent(queries, "bias", lambda x: x[..., :4]),
        _bent(queries, "ids", lambda x: x[:1]),
        {name: array[:1] if name != "scale" else array for name, array in queries.items()},
        queries | {"self": queries["ids"]},
        {},
    ]
    named = [
        Request(whole_request, "cat"),
        *(Request(arrays, "cat") for arrays in spoilt),
        Request(queries, "cat"),
    ]
    answers = engine.answer(named)
    assert all(isinstance(answer, InputError) for answer in answers[1:-1]), answers[1:-1]
    for answer in (answers[0], answers[-1]):
        assert _judge(Draw(whole_request, None), answer, engine) is None
    for long in ("", "x" * 10_000):
        (answer,) = engine.answer([Request(queries, long)])
        assert isinstance(answer, InputError)
        assert "length" in str(answer)


def test_any_exception_is_the_answer_to_its_own_request(
    split: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A session and inputs that raise what no one foresaw, alone and in a merged call."""
    engine = open_engine(split, EngineOptions(cache_mb=0))
    good = honest(1, 2, 5, 0, 1, 1, seed=1)
    poisoned = honest(1, 2, 5, 0, 1, 1, seed=2)
    poison = poisoned["ids"][0, 0] = 7
    good["ids"][...] = 1
    query = engine.session.query

    def failing(context: Any, inputs: Arrays) -> Any:
        if (inputs["ids"] == poison).any():
            raise ValueError("\x1b[2Ja secret\nERROR: forged")
        return query(context, inputs)

    monkeypatch.setattr(engine.session, "query", failing)

    class Hostile(dict[str, Any]):
        def items(self) -> Any:
            raise MemoryError("no")

    answers = engine.answer(
        [Request(good), Request(poisoned), Request(Hostile(good)), Request(None), Request(good)]
    )  # type: ignore[arg-type]
    assert isinstance(answers[1], UnexpectedError)
    assert isinstance(answers[1].__cause__, ValueError)
    assert "\x1b" not in str(answers[1]) + caplog.text
    assert "in failing" in caplog.text
    assert "\nERROR: forged" not in caplog.text
    assert "\n" not in str(answers[1])
    assert isinstance(answers[2], UnexpectedError)
    assert isinstance(answers[3], UnexpectedError)
    for answer in (answers[0], answers[4]):
        assert _judge(Draw(good, None), answer, engine) is None


@pytest.mark.parametrize("failing", ["encode", "query"])
def test_an_engine_that_fails_is_not_the_fault_of_the_inputs(
    split: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Alone and in a merged call; what is wrong with a request is still its own."""
    engine = open_engine(split, EngineOptions(cache_mb=0))
    good = honest(1, 2, 5, 0, 1, 1, seed=1)

    def out_of_memory(*args: Any) -> Any:
        raise EngineError("the GPU could not allocate 12 bytes", where="device 0")

    with monkeypatch.context() as patched:
        patched.setattr(engine.session, failing, out_of_memory)
        answers = engine.answer([Request(good), Request(good), Request({})])
    for answer in answers[:2]:
        assert isinstance(answer, UnexpectedError)
        assert isinstance(answer.__cause__, EngineError)
    assert isinstance(answers[2], InputError)
    assert _judge(Draw(good, None), engine.answer([Request(good)])[0], engine) is None


def test_outputs_that_have_other_rows_are_not_shared_out() -> None:
    merging = Merging(
        [TensorSpec("x", "float32", ("n", 2))], [TensorSpec("y", "float32", ("n", 2))]
    )
    for rows in (2, 4, 0):
        with pytest.raises(ValueError, match="rows"):
            merging.take_apart({"y": np.zeros((rows, 2), np.float32)}, [1, 2], 1)


def test_what_one_sends_may_not_show_in_anothers_answer() -> None:
    """A scale over the whole batch, as in dynamic quantisation: equals hardly notice it, but a
    stranger can force it."""
    merging = Merging(
        [TensorSpec("x", "float32", ("n", 3))], [TensorSpec("y", "float32", ("n", 3))]
    )

    def quantised(arrays: Any) -> Any:
        scale = np.abs(arrays["x"]).max() / 2**14
        return {"y": np.round(arrays["x"] / scale) * scale}

    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    assert not merging.holds(quantised, {"x": x})
    assert merging.holds(lambda arrays: {"y": np.tanh(arrays["x"])}, {"x": x})


def test_queries_with_the_contexts_own_batch_are_not_merged(split: Path) -> None:
    """Where contexts and queries are one dimension, two requests' queries can't share the contexts
    of one."""
    engine = open_engine(split, EngineOptions())
    dims = {size for spec in engine.session.stages["context"].inputs for size in spec.shape}
    assert engine.merging.dim not in dims
    stages = engine.session.stages
    from dataclasses import replace

    same = tuple(
        replace(s, shape=(engine.merging.dim, *s.shape[1:])) for s in stages["context"].inputs
    )
    engine.session.inputs = (*same, *engine.session.inputs[len(same) :])
    assert not RequestEngine(engine.session).merges
