"""Attentions of ONNX Runtime's own in files: every form is taken in, fused, and equal to its
formula in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from crossfuse import InputError, runtime
from crossfuse.export.fuse import fuse
from crossfuse.export.sources.onnx_file.load import onnx_spec
from crossfuse.targets.onnxruntime import lower_ort_cpu
from graphs_for_tests import run_model
from onnx_building import INT32, Graph, attention, normal, run

H, D = 4, 16
W = H * D
HIDDEN = -10000.0
SIZES = ((2, 5, 7), (1, 9, 3), (3, 1, 11))

Feeds = dict[str, np.ndarray]
Form = tuple[
    Callable[[Graph], None], Callable[[int, int, int], Feeds], Callable[[Feeds], np.ndarray]
]


def x(b: int, length: int, width: int = W, seed: int = 0) -> np.ndarray:
    return normal(b, length, width, seed=seed)


def lengths(b: int, most: int) -> np.ndarray:
    return np.random.default_rng(b + most).integers(1, most + 1, b).astype(np.int32)


def scattered(*shape: int) -> np.ndarray:
    """A mask that is no prefix; some row has no key at all."""
    mask = (np.random.default_rng(sum(shape)).random(shape) > 0.5).astype(np.int32)
    mask[0, ..., :] = 0 if shape[-1] == 3 else mask[0, ..., :]
    return mask


def qkv(g: Graph, *names: str) -> list[str]:
    g.input("q", ["batch", "s", W])
    return ["q", *(g.input(n, ["batch", "t", W]) for n in ("k", "v"))]


def three(b: int, s: int, t: int) -> Feeds:
    return {"q": x(b, s), "k": x(b, t, seed=1), "v": x(b, t, seed=2)}


BIAS = normal(3 * W, seed=9)
PARTS = np.split(BIAS.astype(np.float64), 3)


def plus(f: Feeds) -> list[np.ndarray]:
    return [f[n] + part for n, part in zip(("q", "k", "v"), PARTS, strict=True)]


def added(mask: np.ndarray, fill: float = HIDDEN) -> np.ndarray:
    """``[B, T]`` or ``[B, S, T]`` of ones and zeros → what is added to ``[B, H, S, T]`` scores."""
    wide = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    return np.where(wide > 0, 0.0, fill)


def mha(
    *more: Any, inputs: Mapping[str, tuple[list[Any], int]] = {}, **attributes: Any
) -> Callable[[Graph], None]:
    def make(g: Graph) -> None:
        given = qkv(g)
        for name, (shape, kind) in inputs.items():
            g.input(name, shape, kind)
        tail = [g.weight(m) if isinstance(m, np.ndarray) else m for m in more]
        g.microsoft("MultiHeadAttention", *given, *tail, outputs=["y"], num_heads=H, **attributes)

    return make


def causal(s: int, t: int) -> np.ndarray:
    return np.where(np.arange(t) <= np.arange(s)[:, None], 0.0, -np.inf)


def before(n: np.ndarray, t: int) -> np.ndarray:
    return (np.arange(t) < n[:, None]).astype(np.int32)


def with_keys(
    make: Callable[[int, int], np.ndarray], name: str = "mask"
) -> Callable[[int, int, int], Feeds]:
    return lambda b, s, t: {**three(b, s, t), name: make(b, t)}


def packed_qkv(g: Graph) -> None:
    g.input("q", ["batch", "s", H, 3, D])
    g.microsoft("MultiHeadAttention", "q", "", "", g.weight(BIAS), outputs=["y"], num_heads=H)


def packed_kv(g: Graph) -> None:
    g.input("q", ["batch", "s", W])
    g.input("kv", ["batch", "t", H, 2, D])
    g.microsoft("MultiHeadAttention", "q", "kv", outputs=["y"], num_heads=H, scale=0.3)


def by_heads(g: Graph) -> None:
    g.input("q", ["batch", "s", W])
    g.input("k", ["batch", H, "t", D])
    g.input("v", ["batch", H, "t", D])
    g.microsoft("MultiHeadAttention", "q", "k", "v", g.weight(BIAS), outputs=["y"], num_heads=H)


def merged(t: np.ndarray) -> np.ndarray:
    return t.transpose(0, 2, 1, 3).reshape(t.shape[0], t.shape[2], -1)


MHA: dict[str, Form] = {
    "plain": (mha(), three, lambda f: attention(f["q"], f["k"], f["v"], H)),
    "bias_scale": (mha(BIAS, scale=0.25), three, lambda f: attention(*plus(f), H, scale=0.25)),
    "padding": (
        mha(BIAS, "mask", inputs={"mask": (["batch", "t"], INT32)}),
        with_keys(scattered),
        lambda f: attention(*plus(f), H, added(f["mask"])),
    ),
    "lengths": (
        mha("", "mask", inputs={"mask": (["batch"], INT32)}),
        with_keys(lengths),
        lambda f: attention(f["q"], f["k"], f["v"], H, added(before(f["mask"], f["k"].shape[1]))),
    ),
    "pairs": (
        mha("", "mask", inputs={"mask": (["batch", "s", "t"], INT32)}, mask_filter_value=-50.0),
        lambda b, s, t: {**three(b, s, t), "mask": scattered(b, s, t)},
        lambda f: attention(f["q"], f["k"], f["v"], H, added(f["mask"], -50.0)),
    ),
    "attention_bias": (
        mha("", "", "bias", inputs={"bias": ([1, H, "s", "t"], 1)}),
        lambda b, s, t: {**three(b, s, t), "bias": normal(1, H, s, t, seed=4)},
        lambda f: attention(f["q"], f["k"], f["v"], H, f["bias"]),
    ),
    "bias_and_padding": (
        mha(
            "",
            "mask",
            "bias",
            inputs={"mask": (["batch", "t"], INT32), "bias": (["batch", 1, "s", "t"], 1)},
        ),
        lambda b, s, t: {
            **three(b, s, t),
            "mask": scattered(b, t),
            "bias": normal(b, 1, s, t, seed=4),
        },
        lambda f: attention(f["q"], f["k"], f["v"], H, f["bias"] + added(f["mask"])),
    ),
    "causal": (
        mha(unidirectional=1),
        lambda b, s, t: three(b, t, t),
        lambda f: attention(f["q"], f["k"], f["v"], H, causal(f["q"].shape[1], f["k"].shape[1])),
    ),
    "packed": (
        packed_qkv,
        lambda b, s, t: {"q": normal(b, s, H, 3, D)},
        lambda f: attention(
            *(f["q"][..., i, :].reshape(*f["q"].shape[:2], W) + PARTS[i] for i in range(3)), H
        ),
    ),
    "packed_keys": (
        packed_kv,
        lambda b, s, t: {"q": x(b, s), "kv": normal(b, t, H, 2, D, seed=1)},
        lambda f: attention(
            f["q"],
            *(f["kv"][..., i, :].reshape(*f["kv"].shape[:2], W) for i in range(2)),
            H,
            scale=0.3,
        ),
    ),
    "keys_by_head": (
        by_heads,
        lambda b, s, t: {
            "q": x(b, s),
            "k": normal(b, H, t, D, seed=1),
            "v": normal(b, H, t, D, seed=2),
        },
        lambda f: attention(f["q"] + PARTS[0], merged(f["k"]), merged(f["v"]), H),
    ),
}

WEIGHTS = normal(W, 3 * W, seed=7) / 5
UNEQUAL = normal(W, 2 * W + 48, seed=8) / 5


def self_attention(
    weights: np.ndarray,
    mask: list[Any] | None = None,
    *,
    bias: np.ndarray | None = None,
    scores: bool = False,
    **attributes: Any,
) -> Callable[[Graph], None]:
    def make(g: Graph) -> None:
        given = [
            g.input("x", ["batch", "t", W]),
            g.weight(weights),
            "" if bias is None else g.weight(bias),
        ]
        given += [g.input("mask", mask, INT32) if mask is not None else "", ""]
        given.append(g.input("scores", ["batch", H, "t", "t"]) if scores else "")
        while not given[-1]:
            given.pop()
        g.microsoft("Attention", *given, outputs=["y"], num_heads=H, **attributes)

    return make


def projected(
    f: Feeds, weights: np.ndarray, bias: np.ndarray | None, *sizes: int
) -> list[np.ndarray]:
    found = f["x"].astype(np.float64) @ weights.astype(np.float64) + (0.0 if bias is None else bias)
    return np.split(found, np.cumsum(sizes or (W, W, W))[:2], axis=-1)


def plain_x(b: int, s: int, t: int) -> Feeds:
    return {"x": x(b, t)}


SELF: dict[str, Form] = {
    "self": (
        self_attention(WEIGHTS, bias=BIAS),
        plain_x,
        lambda f: attention(*projected(f, WEIGHTS, BIAS), H),
    ),
    "self_padding": (
        self_attention(WEIGHTS, ["batch", "t"], bias=BIAS),
        lambda b, s, t: {"x": x(b, t), "mask": scattered(b, t)},
        lambda f: attention(*projected(f, WEIGHTS, BIAS), H, added(f["mask"])),
    ),
    "self_ends": (
        self_attention(WEIGHTS, ["batch"], bias=BIAS),
        lambda b, s, t: {"x": x(b, t), "mask": lengths(b, t)},
        lambda f: attention(
            *projected(f, WEIGHTS, BIAS), H, added(before(f["mask"], f["x"].shape[1]))
        ),
    ),
    "self_ends_and_beginnings": (
        self_attention(WEIGHTS, ["twice"], bias=BIAS),
        lambda b, s, t: {
            "x": x(b, t),
            "mask": np.concatenate([lengths(b, t), lengths(b, t) // 2]).astype(np.int32),
        },
        lambda f: attention(
            *projected(f, WEIGHTS, BIAS), H, added(between(f["mask"], f["x"].shape[1]))
        ),
    ),
    "self_pairs": (
        self_attention(WEIGHTS, ["batch", "t", "t"], bias=BIAS),
        lambda b, s, t: {"x": x(b, t), "mask": scattered(b, t, t)},
        lambda f: attention(*projected(f, WEIGHTS, BIAS), H, added(f["mask"])),
    ),
    "self_causal_padding": (
        self_attention(WEIGHTS, ["batch", "t"], bias=BIAS, unidirectional=1),
        lambda b, s, t: {"x": x(b, t), "mask": before(lengths(b, t), t)},
        lambda f: attention(
            *projected(f, WEIGHTS, BIAS),
            H,
            added(f["mask"]) + causal(f["x"].shape[1], f["x"].shape[1]),
        ),
    ),
    "self_scores": (
        self_attention(WEIGHTS, bias=BIAS, scores=True, scale=0.2),
        lambda b, s, t: {"x": x(b, t), "scores": normal(b, H, t, t, seed=3)},
        lambda f: attention(*projected(f, WEIGHTS, BIAS), H, f["scores"], scale=0.2),
    ),
    "self_wider_values": (
        self_attention(UNEQUAL, bias=normal(2 * W + 48), qkv_hidden_sizes=[W, W, 48]),
        plain_x,
        lambda f: attention(*projected(f, UNEQUAL, normal(2 * W + 48), W, W, 48), H),
    ),
}


def between(ends_and_beginnings: np.ndarray, t: int) -> np.ndarray:
    ends, begins = np.split(ends_and_beginnings, 2)
    return before(ends, t) - before(begins, t)


ANGLES = normal(16, D // 2, seed=6)


def grouped(kv: int, *, packed: bool = False, **attributes: Any) -> Callable[[Graph], None]:
    def make(g: Graph) -> None:
        g.input("q", ["batch", "t", (H + 2 * kv) * D if packed else W])
        others = ["", ""] if packed else [g.input(n, ["batch", "t", kv * D]) for n in ("k", "v")]
        g.input("mask", ["batch", "t"], INT32)
        sums = g.op("ReduceSum", "mask", g.ints(1), keepdims=0)
        lasts = g.op("Sub", sums, g.weight(1, np.int32))
        total = g.op("Cast", g.op("Gather", g.op("Shape", "mask"), g.weight(1, np.int64)), to=INT32)
        tables = (
            [g.weight(np.cos(ANGLES)), g.weight(np.sin(ANGLES))]
            if attributes.get("do_rotary")
            else []
        )
        g.microsoft(
            "GroupQueryAttention",
            "q",
            *others,
            "",
            "",
            lasts,
            total,
            *tables,
            outputs=["y", "pk", "pv"],
            num_heads=H,
            kv_num_heads=kv,
            **attributes,
        )

    return make


def turned(t: np.ndarray, heads: int, *, interleaved: bool) -> np.ndarray:
    t = t.astype(np.float64).reshape(*t.shape[:2], heads, D)
    cos, sin = (f(ANGLES[: t.shape[1]].astype(np.float64))[None, :, None] for f in (np.cos, np.sin))
    first, second = (
        (t[..., ::2], t[..., 1::2]) if interleaved else (t[..., : D // 2], t[..., D // 2 :])
    )
    one, two = first * cos - second * sin, first * sin + second * cos
    both = np.stack([one, two], -1) if interleaved else np.concatenate([one, two], -1)
    return both.reshape(*t.shape[:2], heads * D)


def grouped_feeds(kv: int, *, packed: bool = False) -> Callable[[int, int, int], Feeds]:
    def make(b: int, s: int, t: int) -> Feeds:
        mask = np.ones((b, t), np.int32)
        if packed:
            return {"q": x(b, t, (H + 2 * kv) * D), "mask": mask}
        return {"q": x(b, t), "k": x(b, t, kv * D, 1), "v": x(b, t, kv * D, 2), "mask": mask}

    return make


def split_packed(f: Feeds, kv: int) -> list[np.ndarray]:
    return np.split(f["q"], [W, W + kv * D], axis=-1)


def window(t: int, size: int) -> np.ndarray:
    i, j = np.arange(t)[:, None], np.arange(t)
    return np.where((j <= i) & (j > i - size), 0.0, -np.inf)


def grouped_truth(f: Feeds, *, interleaved: bool = False, size: int | None = None) -> np.ndarray:
    t = f["q"].shape[1]
    q, k = turned(f["q"], H, interleaved=interleaved), turned(f["k"], 2, interleaved=interleaved)
    return attention(q, k, f["v"], H, causal(t, t) if size is None else window(t, size), kv_heads=2)


GROUPED: dict[str, Form] = {
    "grouped": (
        grouped(2),
        grouped_feeds(2),
        lambda f: attention(f["q"], f["k"], f["v"], H, causal(*[f["q"].shape[1]] * 2), kv_heads=2),
    ),
    "grouped_packed": (
        grouped(1, packed=True, scale=0.4),
        grouped_feeds(1, packed=True),
        lambda f: attention(
            *split_packed(f, 1), H, causal(*[f["q"].shape[1]] * 2), kv_heads=1, scale=0.4
        ),
    ),
    "grouped_rotary": (grouped(2, do_rotary=1), grouped_feeds(2), grouped_truth),
    "grouped_interleaved": (
        grouped(2, do_rotary=1, rotary_interleaved=1),
        grouped_feeds(2),
        lambda f: grouped_truth(f, interleaved=True),
    ),
    "grouped_window": (
        grouped(2, do_rotary=1, local_window_size=3),
        grouped_feeds(2),
        lambda f: grouped_truth(f, size=3),
    ),
}

FORMS = {**MHA, **SELF, **GROUPED}
ONLY_ON_GPUS = {"packed", "packed_keys"}
LIMITS = {"self": ("x", "t"), "grouped": ("q", "t")}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path: Path, name: str) -> None:
    """Fused into one operator; equal to the formula, and to the file where ONNX Runtime's CPU
    provider executes it."""
    make, feeds_at, truth = FORMS[name]
    g = Graph()
    make(g)
    g.output("y", ["batch", "rows", "width"])
    path = g.save(tmp_path / "file.onnx", 17)
    feeds = feeds_at(*SIZES[0])
    graph = fuse(onnx_spec(path, example=feeds))
    assert len(graph.ledger) == 1
    assert [n.op_type for n in graph.model.graph].count("FusedAttention") == 1
    assert not {n.op_type for n in graph.model.graph} & {"Softmax", "Attention"}
    lowered = lower_ort_cpu(graph.model).model
    for sizes in SIZES:
        feeds = feeds_at(*sizes)
        (got,) = run_model(lowered, feeds)
        np.testing.assert_allclose(got, truth(feeds), atol=3e-3 if has_empty_row(feeds) else 2e-5)
        if name not in ONLY_ON_GPUS:
            np.testing.assert_allclose(
                run(path, feeds)[0], truth(feeds), atol=3e-3 if has_empty_row(feeds) else 2e-5
            )


def has_empty_row(feeds: Feeds) -> bool:
    """Scores of −10⁴ and more have a rounding of a thousandth."""
    return "mask" in feeds and feeds["mask"].ndim > 1 and bool((feeds["mask"].max(-1) == 0).any())


@pytest.mark.parametrize(
    "name",
    [
        "padding",
        "packed",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("self_causal_padding", "grouped_rotary")
        ),
    ],
)
def test_exported(tmp_path: Path, name: str) -> None:
    """Through the gate, where the reference is in float64, also for a form that only GPUs
    execute."""
    make, feeds_at, truth = FORMS[name]
    g = Graph()
    make(g)
    g.output("y", ["batch", "rows", "width"])
    np.savez(tmp_path / "example.npz", **feeds_at(*SIZES[0]))
    path = g.save(tmp_path / "file.onnx", 17)
    bundle = crossfuse.export(path, tmp_path / "b", example=tmp_path / "example.npz")
    assert len(bundle.ledger) == 1
    assert bundle.manifest.targets["ort-cpu"].parity["reference_dtype"] == "float64"
    with runtime.load(bundle.path) as session:
        for sizes in SIZES[1:]:
            feeds = feeds_at(*sizes)
            np.testing.assert_allclose(
                session.run(**feeds)["y"], truth(feeds), atol=3e-3 if has_empty_row(feeds) else 2e-5
            )


def cached(g: Graph) -> None:
    given = qkv(g)
    for name in ("pk", "pv"):
        g.input(name, ["batch", H, "past", D])
    g.microsoft(
        "MultiHeadAttention", *given, "", "", "", "pk", "pv", outputs=["y", "nk", "nv"], num_heads=H
    )


def packed_batch(g: Graph) -> None:
    given = [g.input("x", ["tokens", W]), g.weight(WEIGHTS), g.weight(BIAS)]
    given += [g.input("places", ["batch", "t"], INT32), g.input("sums", ["more"], INT32)]
    g.microsoft("PackedAttention", *given, outputs=["y"], num_heads=H)


def capped(g: Graph) -> None:
    grouped(2, softcap=30.0)(g)


def quantised_whole(g: Graph) -> None:
    given = [
        g.input("x", ["batch", "t", W], 2),
        g.weight(np.zeros((W, 3 * W), np.int8)),
        g.weight(BIAS),
    ]
    given += [
        g.weight(np.float32(0.1)),
        g.weight(np.float32(0.1)),
        g.input("mask", ["batch", "t"], INT32),
    ]
    g.microsoft("QAttention", *given, outputs=["y"], num_heads=H)


REFUSED: dict[str, tuple[Callable[[Graph], None], str]] = {
    "cached": (cached, r"MultiHeadAttention at MultiHeadAttention_0 \(it has a cache\)"),
    "packed_batch": (
        packed_batch,
        r"PackedAttention at PackedAttention_0 \(its batch is packed without padding\)",
    ),
    "capped": (capped, r"GroupQueryAttention at .* \(its scores are capped"),
    "quantised": (quantised_whole, r"QAttention at QAttention_0 \(it is quantised as a whole\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_taken_in(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    g = Graph()
    make(g)
    g.output("y", ["tokens", W] if name == "packed_batch" else ["batch", "rows", "width"])
    path = g.save(tmp_path / "file.onnx", 17)
    with pytest.raises(InputError, match=message) as caught:
        onnx_spec(path)
    assert "Give the file as it was exported, before ONNX Runtime's optimizer changed it" in str(
        caught.value
    )
