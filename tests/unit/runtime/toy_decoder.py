"""A session over a decoder that a few lines of NumPy compute: what comes next depends on all tokens
so far and on the context. `logits_of` is the same, written for one whole sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.runtime.session import Session
from unit.runtime.stub_stage import stub_engines

VOCABULARY, LENGTH, HASHES = 7, 16, 53
TABLE = np.random.default_rng(5).standard_normal((HASHES, VOCABULARY)).astype(np.float32) * 2
IMAGES = np.random.default_rng(6).standard_normal((2, VOCABULARY)).astype(np.float32)


def logits_of(ids: Any, image: np.ndarray) -> np.ndarray:
    """``[vocabulary]``: of what follows the tokens."""
    weights = np.arange(1, len(ids) + 1)
    return TABLE[int((weights * np.asarray(ids)).sum()) % HASHES] + image


def _context(feeds: Any) -> list[np.ndarray]:
    return [np.array(feeds["image"])]


def _rows(ids: np.ndarray, places: np.ndarray, sums: np.ndarray, bias: np.ndarray) -> np.ndarray:
    each = np.arange(len(ids)) * len(bias) // len(ids)
    return TABLE[sums.astype(int) % HASHES] + bias[each][:, None]


def _query(feeds: Any) -> list[np.ndarray]:
    ids = feeds["ids"]
    sums = np.cumsum(ids * np.arange(1, ids.shape[1] + 1), 1)
    return [_rows(ids, sums, sums, feeds["bias"])]


def _step(feeds: Any) -> list[np.ndarray]:
    ids, places, state = feeds["ids"], feeds["position"], np.array(feeds["state:kept"])
    for row in range(len(ids)):
        state[row, places[row], 0] = ids[row] * (places[row] + 1)
    seen = np.arange(LENGTH) <= places[..., None]
    sums = np.where(seen, state[:, None, :, 0], 0).sum(-1)
    return [_rows(ids, places, sums, feeds["bias"]), state]


def toy_session(
    generation: dict[str, Any] | None = None, *, outputs: str = "logits", first: int = 0
) -> Session:
    """Takes images ``[contexts, vocabulary]`` and ids; holds `LENGTH` tokens. With so many first
    tokens of its context, which change no scores."""
    image = TensorSpec("image", "float32", ("contexts", VOCABULARY))
    bias = TensorSpec("bias", "float32", ("contexts", VOCABULARY))
    ids = TensorSpec("ids", "int64", ("batch", "tokens"), (0, VOCABULARY - 1))
    new = TensorSpec("ids", "int64", ("batch", "new_tokens"), (0, VOCABULARY - 1))
    place = TensorSpec("position", "int64", ("batch", "new_tokens"))
    before, after = (
        TensorSpec(n, "float32", ("batch", LENGTH, 1)) for n in ("state:kept", "next:kept")
    )
    logits = TensorSpec(outputs, "float32", ("batch", "tokens", VOCABULARY))
    begin = [TensorSpec("prefix_ids", "int64", ("contexts", first))] if first else []
    stages = {
        "context": StageSpec((image, *begin), (bias,)),
        "query": StageSpec((ids, bias), (logits,)),
        "step": StageSpec((new, bias, place, before), (logits, after)),
    }
    engines = stub_engines(stages, {"context": _context, "query": _query, "step": _step})
    dims = {name: Dim(name) for name in ("batch", "contexts", "tokens", "new_tokens")}
    return Session(
        "stub",
        stages,
        dims,
        engines,
        shared_batch="batch",
        decode=Decode("ids", LENGTH),
        generation=generation,
    )
