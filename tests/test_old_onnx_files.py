"""Files of PyTorch's older exporter, and of opsets from 9 to 26: attentions counted, named, fused and equal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import runtime
from onnx_building import normal

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
            return t.view(t.shape[0], t.shape[1], H, W // H).transpose(1, 2).reshape(t.shape[0] * H, t.shape[1], W // H)

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
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        q, (k, v) = heads(self.two(x)), (heads(t) for t in self.three(y).chunk(2, -1))
        keys = (mask != 0)[:, None, None, :]
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).reshape(x.shape)


MODULES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], set[str]]] = {
    "root": (Attend, {"cross": 1}, {"(root)"}),
    "named": (
        Named,
        {"self": 3, "cross": 3},
        {f"layers.{i}.{kind}{again}" for i, again in ((0, ""), (0, "_1"), (1, "")) for kind in ("self_attention", "cross")},
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
            torch.onnx.export(module, example(), str(path), opset_version=opset, dynamo=False, input_names=list(AXES),
                              output_names=["out"], dynamic_axes={**AXES, "out": {0: "batch", 1: "nx"}})  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def compared(bundle_path: Path, module: nn.Module) -> None:
    """The bundle against the module in float64, at other sizes and with masks that are no prefix."""
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
        ("root", 11), ("named", 9), ("merged", 12), ("scaled", 14),
        *(pytest.param(n, o, marks=SLOW) for n in MODULES for o in (9, 10, 11, 12, 13, 14, 15, 16, 17)
          if (n, o) not in {("root", 11), ("named", 9), ("merged", 12), ("scaled", 14)} and not (n == "scaled" and o < 14)),
    ],
)  # fmt: skip
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
