"""Files of PyTorch's older exporter, and of opsets from 9 to 26: attentions counted, named, fused
and equal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, runtime
from crossfuse.export.fuse import fuse
from crossfuse.export.sources.onnx_file.load import load_onnx, onnx_spec
from crossfuse.targets.onnxruntime import lower_ort_cpu
from graphs_for_tests import run_model
from onnx_building import BOOL, INT64, Graph, attention, normal, run

W, H = 16, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(normal(*shape, seed=seed))


class Attend(nn.Module):
    """Written out with ``view``, as code before ``scaled_dot_product_attention`` was."""

    def __init__(self, fill: float = float("-inf")) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(W, W) for _ in range(4))
        self.fill = fill

    def heads(self, t: Tensor) -> Tensor:
        return t.view(t.shape[0], t.shape[1], H, W // H).transpose(1, 2)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(y)), self.heads(self.v(y))
        scores = (q @ k.transpose(2, 3)) / 2.0
        scores = scores.masked_fill(mask[:, None, None, :] == 0, self.fill)
        out = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.o(out.reshape(out.shape[0], out.shape[1], W))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attention, self.cross = Attend(), Attend(-1e9)
        self.norm = nn.LayerNorm(W)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        every = torch.ones_like(x[:, :, 0]).long()
        x = self.norm(x + self.self_attention(x, x, every))
        return x + self.cross(x, y, mask)


class Named(nn.Module):
    """Self and cross attention in layers of a list, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        for layer in (*self.layers, self.layers[0]):
            x = layer(x, y, mask)
        return x


class Merged(nn.Module):
    """Heads merged into the batch, ``bmm`` and ``baddbmm``, a mask added."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(W, W), nn.Linear(W, 2 * W)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        def flat(t: Tensor) -> Tensor:
            return (
                t.view(t.shape[0], t.shape[1], H, W // H)
                .transpose(1, 2)
                .reshape(t.shape[0] * H, t.shape[1], W // H)
            )

        k, v = self.kv(y).chunk(2, -1)
        added = (1.0 - mask.float())[:, None, None, :] * -1e9
        scores = torch.bmm(flat(self.q(x)) * 0.5, flat(k).transpose(1, 2))
        scores = scores.view(x.shape[0], H, x.shape[1], y.shape[1]) + added
        scores = scores.view(x.shape[0] * H, x.shape[1], y.shape[1])
        out = torch.bmm(torch.softmax(scores, 2), flat(v)).view(x.shape[0], H, x.shape[1], W // H)
        return out.transpose(1, 2).reshape(x.shape[0], x.shape[1], W)


class Scaled(nn.Module):
    """``scaled_dot_product_attention`` with a bool mask, and causal."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(W, 3 * W), nn.Linear(W, W), nn.Linear(W, 2 * W)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        def heads(t: Tensor) -> Tensor:
            return t.view(t.shape[0], t.shape[1], H, W // H).transpose(1, 2)

        q, k, v = (heads(t) for t in self.one(x).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(
            x.shape
        )
        q, (k, v) = heads(self.two(x)), (heads(t) for t in self.three(y).chunk(2, -1))
        keys = (mask != 0)[:, None, None, :]
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).reshape(
            x.shape
        )


MODULES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], set[str]]] = {
    "root": (Attend, {"cross": 1}, {"(root)"}),
    "named": (
        Named,
        {"self": 3, "cross": 3},
        {
            f"layers.{i}.{kind}{again}"
            for i, again in ((0, ""), (0, "_1"), (1, ""))
            for kind in ("self_attention", "cross")
        },
    ),
    "merged": (Merged, {"cross": 1}, {"(root)"}),
    "scaled": (Scaled, {"self": 1, "cross": 1}, {"(root)", "(root)#2"}),
}

AXES = {"x": {0: "batch", 1: "nx"}, "y": {0: "batch", 1: "ny"}, "mask": {0: "batch", 1: "ny"}}


def example() -> tuple[Tensor, ...]:
    return randn(2, 3, W), randn(2, 5, W, seed=1), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])


def scripted(module: nn.Module, path: Path, opset: int) -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example(),
                str(path),
                opset_version=opset,
                dynamo=False,
                input_names=list(AXES),
                output_names=["out"],
                dynamic_axes={**AXES, "out": {0: "batch", 1: "nx"}},
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def compared(bundle_path: Path, module: nn.Module) -> None:
    """The bundle against the module in float64, at other sizes and with masks that are no
    prefix."""
    module = module.double()
    masks = ([[1, 0, 0, 1]], [[0, 1, 1, 0, 1, 0, 0], [1] * 7, [0, 0, 0, 0, 0, 0, 1]])
    with runtime.load(bundle_path) as session:
        for mask in masks:
            x, y = randn(len(mask), 6, W, seed=3), randn(len(mask), len(mask[0]), W, seed=4)
            with torch.no_grad():
                expected = module(x.double(), y.double(), torch.tensor(mask))
            got = session.run(x=x.numpy(), y=y.numpy(), mask=np.array(mask))["out"]
            np.testing.assert_allclose(got, expected.numpy(), atol=2e-5)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        ("root", 11),
        ("named", 9),
        ("merged", 12),
        ("scaled", 14),
        *(
            pytest.param(n, o, marks=SLOW)
            for n in MODULES
            for o in (9, 10, 11, 12, 13, 14, 15, 16, 17)
            if (n, o) not in {("root", 11), ("named", 9), ("merged", 12), ("scaled", 14)}
            and not (n == "scaled" and o < 14)
        ),
    ],
)
def test_older_exporter(tmp_path: Path, name: str, opset: int) -> None:
    make, counts, sites = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    scripted(module, tmp_path / "old.onnx", opset)
    bundle = crossfuse.export(str(tmp_path / "old.onnx"), tmp_path / "b")
    assert bundle.ledger.counts() == counts
    assert bundle.ledger.counts("ort-cpu") == counts
    assert {row.site for row in bundle.ledger} == sites
    compared(bundle.path, module)


COERCED: dict[str, tuple[str, list[int | str], int | None]] = {
    "last_of_four": ("Softmax", ["b", 3, "n", "m"], 3),
    "over_three_of_four": ("Softmax", ["b", 3, "n", "m"], 1),
    "over_two_of_three": ("LogSoftmax", ["b", "n", "m"], 1),
    "over_all": ("Softmax", ["b", "n", "m"], 0),
    "by_default": ("Softmax", ["b", "n", "m"], None),
    "default_of_two": ("Hardmax", ["b", "m"], None),
}


@pytest.mark.parametrize("name", COERCED)
def test_softmax_of_old(tmp_path: Path, name: str) -> None:
    """Over all axes from one on, as ONNX Runtime computes the file; over the last axis without a
    detour."""
    kind, shape, axis = COERCED[name]
    g = Graph()
    g.input("x", shape)
    g.op("Neg", g.op(kind, "x", **({} if axis is None else {"axis": axis})), outputs=["y"])
    g.output("y", [f"y{i}" for i in range(len(shape))])
    path = g.save(tmp_path / "old.onnx", 11, 6)
    model = load_onnx(Path(path))
    feeds = {"x": normal(*(5 if isinstance(n, str) else n for n in shape))}
    np.testing.assert_allclose(run_model(model, feeds)[0], run(path, feeds)[0], atol=1e-6)
    assert ("Flatten" in {n.op_type for n in model.graph}) == (
        name not in ("last_of_four", "default_of_two")
    )


def test_weights_listed_as_inputs(tmp_path: Path) -> None:
    """As in files before IR version 4."""
    g = Graph()
    q, k = g.input("q", ["b", "n", 8]), g.input("k", ["b", "m", 8])
    weight = normal(8, 8)
    projected = g.op("MatMul", q, g.weight(weight))
    scores = g.op("MatMul", projected, g.op("Transpose", k, perm=[0, 2, 1]))
    g.op("MatMul", g.op("Softmax", scores, axis=2), k, outputs=["y"])
    g.output("y", ["b", "n", 8])
    g.input("w0", [8, 8])
    bundle = crossfuse.export(g.save(tmp_path / "old.onnx", 9, 3), tmp_path / "b")
    assert [t.name for t in next(iter(bundle.manifest.stages.values())).inputs] == ["q", "k"]
    assert bundle.ledger.counts("ort-cpu") == {"cross": 1}
    feeds = {"q": normal(3, 4, 8), "k": normal(3, 6, 8, seed=1)}
    with runtime.load(bundle.path) as session:
        expected = attention(
            feeds["q"].astype(float) @ weight, feeds["k"], feeds["k"], 1, scale=1.0
        )
        np.testing.assert_allclose(session.run(**feeds)["y"], expected, atol=1e-5)


def lengths_mask(f: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.arange(f["k"].shape[1]) < f["n"][:, None, None, None]


def rows(f: Mapping[str, np.ndarray], *, offset: bool) -> np.ndarray:
    places = np.arange(f["q"].shape[1])[:, None]
    return places + (f["n"][:, None, None, None] - f["q"].shape[1] if offset else 0)


def hidden(attended: np.ndarray) -> np.ndarray:
    return np.where(attended, 0.0, -np.inf)


def keys(f: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.arange(f["k"].shape[1])


NEW: dict[
    str,
    tuple[int, dict[str, int], tuple[str, ...], Callable[[Mapping[str, np.ndarray]], np.ndarray]],
] = {
    "lengths_24": (24, {}, ("", "", "", "n"), lambda f: hidden(lengths_mask(f))),
    "causal_lengths_24": (
        24,
        {"is_causal": 1},
        ("", "", "", "n"),
        lambda f: hidden(lengths_mask(f) & (keys(f) <= rows(f, offset=True))),
    ),
    "mask_25": (25, {}, ("mask",), lambda f: hidden(f["mask"])),
    "mask_lengths_25": (
        25,
        {},
        ("mask", "", "", "n"),
        lambda f: hidden(f["mask"] & lengths_mask(f)),
    ),
    "window_25": (
        25,
        {"left_window_size": 2, "right_window_size": 1},
        (),
        lambda f: hidden(
            (keys(f) >= rows(f, offset=False) - 2) & (keys(f) <= rows(f, offset=False) + 1)
        ),
    ),
    "bias_window_25": (
        25,
        {"left_window_size": 1},
        ("bias",),
        lambda f: f["bias"] + hidden(keys(f) >= rows(f, offset=False) - 1),
    ),
    "bias_lengths_26": (
        26,
        {},
        ("bias", "", "", "n"),
        lambda f: f["bias"] + hidden(lengths_mask(f)),
    ),
}


@pytest.mark.parametrize("name", NEW)
def test_newer_opsets(tmp_path: Path, name: str) -> None:
    """``Attention`` with lengths of keys and windows, ``Swish``, and IR version 13, at opsets 24 to
    26."""
    opset, attributes, more, bias = NEW[name]
    g = Graph()
    g.input("q", ["b", "s", 16])
    g.input("k", ["b", "t", 16])
    if "n" in more:
        g.input("n", ["b"], INT64)
    if "mask" in more:
        g.input("mask", ["b", 1, "s", "t"], BOOL)
    if "bias" in more:
        g.input("bias", [1, 4, "s", "t"])
    value = g.op("Swish", "k", alpha=0.7) if opset > 23 else "k"
    g.op(
        "Attention",
        "q",
        "k",
        value,
        *more,
        outputs=["y"],
        q_num_heads=4,
        kv_num_heads=4,
        **attributes,
    )
    g.output("y", ["b", "s", 16])

    def feeds_at(b: int, s: int, t: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(t)
        given = {
            "q": normal(b, s, 16),
            "k": normal(b, t, 16, seed=1),
            "n": rng.integers(s, t + 1, b),
            "mask": rng.random((b, 1, s, t)) > 0.4,
        }
        given["mask"][..., 0] = True
        given["bias"] = normal(1, 4, s, t, seed=2)
        return {n: a for n, a in given.items() if n in ("q", "k") or n in more}

    np.savez(tmp_path / "example.npz", **feeds_at(2, 3, 7))
    path = g.save(tmp_path / "new.onnx", opset, 13)
    graph = fuse(onnx_spec(path, example=feeds_at(2, 3, 7)))
    assert [n.op_type for n in graph.model.graph].count("FusedAttention") == len(graph.ledger) == 1
    lowered = lower_ort_cpu(graph.model).model
    for sizes in ((2, 3, 7), (1, 5, 6), (3, 1, 9)):
        feeds = feeds_at(*sizes)
        value = feeds["k"] / (1 + np.exp(-0.7 * feeds["k"].astype(float)))
        expected = attention(
            feeds["q"], feeds["k"], value, 4, bias({"k": feeds["k"], "q": feeds["q"], **feeds})
        )
        np.testing.assert_allclose(run_model(lowered, feeds)[0], expected, atol=2e-5)


def test_export_at_opset_25(tmp_path: Path) -> None:
    g = Graph()
    g.input("q", ["b", "s", 16])
    g.input("k", ["b", "t", 16])
    g.op(
        "Attention", "q", "k", "k", outputs=["y"], q_num_heads=4, kv_num_heads=4, left_window_size=2
    )
    g.output("y", ["b", "s", 16])
    bundle = crossfuse.export(
        g.save(tmp_path / "new.onnx", 25, 12), tmp_path / "b", ["onnx", "ort-cpu", "ort-cuda"]
    )
    assert bundle.ledger.counts("ort-cpu") == {"cross": 1}
    assert bundle.manifest.targets["ort-cpu"].parity["reference_dtype"] == "float64"
    feeds = {"q": normal(3, 4, 16), "k": normal(3, 6, 16, seed=1)}
    with runtime.load(bundle.path) as session:
        expected = attention(
            feeds["q"],
            feeds["k"],
            feeds["k"],
            4,
            hidden(keys(feeds) >= rows(feeds, offset=False) - 2),
        )
        np.testing.assert_allclose(session.run(**feeds)["y"], expected, atol=1e-5)


def test_what_no_target_reads(tmp_path: Path) -> None:
    """Newer opsets, and operators that the fused graph's opset lacks, are refused with the true
    reason."""
    g = Graph()
    g.input("x", ["b", 4])
    g.op("Relu", "x", outputs=["y"])
    g.output("y", ["b", 4])
    with pytest.raises(InputError, match=r"opset can't be read .*: got 27, expected 1 to 26"):
        load_onnx(Path(g.save(tmp_path / "newer.onnx", 27)))
    g.nodes.clear()
    g.op("CumProd", "x", g.weight(1, np.int64), outputs=["y"])
    with pytest.raises(
        InputError,
        match=r"operators of opset 26 that can't be taken in .*: got CumProd. "
        "Export it again at opset 23",
    ):
        load_onnx(Path(g.save(tmp_path / "new.onnx", 26)))


@pytest.mark.parametrize("name", [pytest.param("named", marks=SLOW), "merged"])
def test_saved_by_the_optimizer(tmp_path: Path, name: str) -> None:
    """What ONNX Runtime's optimizer saves: products with transposes inside, joined norms, names of
    its own."""
    import onnxruntime

    make, counts, _ = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    scripted(module, tmp_path / "old.onnx", 17)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        str(tmp_path / "old.onnx"), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert {node.domain for node in nodes} & {"com.microsoft"}
    bundle = crossfuse.export(str(tmp_path / "optimized.onnx"), tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == counts
    assert bundle.manifest.targets["ort-cpu"].parity["reference_dtype"] == "float64"
    compared(bundle.path, module)
