"""Inputs and outputs as people have them: exported, fused, and equal to eager float64 at sizes
other than the example's. What an output is called, and what it holds, is written out by hand."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec, runtime

WIDTH, HEADS = 16, 2


class Attend(nn.Module):
    """Cross-attention; subclasses take their inputs, and give their outputs, in other ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def attend(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            f(t).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for f, t in ((self.q, x), (self.k, y), (self.v, y))
        )
        mask = None if mask is None else mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


@dataclass
class Batch:
    x: Tensor
    y: Tensor
    mask: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Fixed:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Any
    y: Any


class Bag:
    """Known to PyTorch's pytrees, by places."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second


@dataclass
class Known:
    """Known to PyTorch's exporter."""

    x: Tensor
    y: Tensor
    mask: Tensor | None = None


class Given(NamedTuple):
    """Values of a size: two sequences and a mask that has holes."""

    x: Tensor
    y: Tensor
    mask: Tensor


def given(batch: int = 2, n: int = 3, m: int = 5, seed: int = 0) -> Given:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, m, generator=g) > 0.4
    mask[:, -1] = True
    shape = (batch, n, WIDTH), (batch, m, WIDTH)
    return Given(torch.randn(shape[0], generator=g), torch.randn(shape[1], generator=g), mask)


SIZES = ((1, 7, 4, 5), (3, 1, 11, 6), (2, 9, 20, 7))


def sizes(x: str, y: str, mask: str | None = None) -> dict[str, dict[int, str]]:
    found = {x: {0: "batch:1:8", 1: "n:1:32"}, y: {0: "batch", 1: "m:1:32"}}
    return found | ({} if mask is None else {mask: {0: "batch", 1: "m"}})


@dataclass(frozen=True)
class Member:
    """A way to take inputs and give outputs.

    ``outputs``: what is in the module's result, by the names that the bundle is to have.
    """

    forward: Callable[..., Any]
    inputs: Callable[[Given], dict[str, Any]]
    dynamic: Any
    names: str
    outputs: Callable[[Any], dict[str, Any]]
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    context: tuple[str, ...] = ()


def concatenated(self: Attend, x: Tensor, feats: Any) -> Tensor:
    return self.attend(x, torch.cat(list(feats), 1))


def nested(self: Attend, d: Any, flags: Any) -> Any:
    z = self.attend(d["in"]["x"], d["in"]["y"][0])
    z = z * flags["k"] if flags["deep"] else z
    return {"a": {"b": z, "c": [z.sum(-1), None, d["in"]["y"][0]]}}


def many(self: Attend, x: Tensor, y: Tensor) -> Any:
    z = self.attend(x, y)
    return {
        **{"z": z, "again": z, "x": x, "y": z.argmax(-1), "positive": z > 0, "any": (z > 0).any()},
        **{"n": x.shape[1], "half": x.shape[1] / 2, "three": 3, "yes": True, "none": None},
        **{"weight": self.q.weight, "t": self.table, "t2": self.table, "ones": torch.ones(2)},
        **{"mean": z.mean(), "places": torch.arange(y.shape[1])},
    }


def without_axes(
    self: Attend, x: Tensor, y: Tensor, scale: Tensor, step: Tensor, on: Tensor
) -> Any:
    z = self.attend(x, y) * scale + step
    return torch.where(on, z, -z), z.mean(), step + 1, on


def numbers(g: Given) -> dict[str, Tensor]:
    n = g.x.shape[1]
    return {"scale": torch.tensor(0.5 + n), "step": torch.tensor(n), "on": torch.tensor(n % 2 == 0)}


def twice(self: Attend, hidden: Tensor, y: Tensor) -> Any:
    for _ in range(2):
        hidden = self.attend(hidden, y)
    return {"hidden": hidden, "hidden_out": hidden * 2, "y": y}


def split(self: Attend, q: Any, ctx: Any) -> Any:
    z = self.attend(q["x"], ctx.y, ctx.mask) * ctx.scale
    return {"z": z, "pooled": ctx.y.mean(1), "ones": torch.ones(3), "n": 7, "q": q["x"], "y": ctx.y}


class Context(NamedTuple):
    y: Any
    mask: Any
    scale: Any


MEMBERS = {
    "dataclass": Member(
        lambda self, batch: Batch(self.attend(batch.x, batch.y, batch.mask) * batch.scale, batch.y),
        lambda g: {"batch": Batch(g.x, g.y, g.mask, 0.5)},
        sizes("batch.x", "batch.y", "batch.mask"),
        "batch.x batch.y batch.mask",
        lambda r: {"x": r.x, "y": r.y, "scale": 1.0},
        {"batch.scale": 0.5},
    ),
    "frozen dataclass to named tuple": Member(
        lambda self, b: Pair(self.attend(b.x, b.y), b.y.mean(1)),
        lambda g: {"b": Fixed(g.x, g.y)},
        {"b": sizes("x", "y")},
        "b.x b.y",
        lambda r: {"x": r[0], "y": r[1]},
    ),
    "named tuple by position": Member(
        lambda self, pair, /, extra=None: {"z": self.attend(*pair), "none": extra},
        lambda g: {"pair": Pair(g.x, g.y), "extra": None},
        sizes("pair.x", "pair.y"),
        "pair.x pair.y",
        lambda r: {"z": r["z"]},
        {"extra": None},
    ),
    "nested dicts": Member(
        nested,
        lambda g: {"d": {"in": {"x": g.x, "y": [g.y]}}, "flags": {"deep": True, "k": 3}},
        {"d": {"in": {"x": sizes("x", "y")["x"], "y": [sizes("x", "y")["y"]]}}},
        "d.in.x d.in.y.0",
        lambda r: {"a_b": r["a"]["b"], "a_c_0": r["a"]["c"][0], "a_c_2": r["a"]["c"][2]},
        {"flags.deep": True, "flags.k": 3},
    ),
    "list": Member(
        concatenated,
        lambda g: {"x": g.x, "feats": [g.y, g.y[:, :1] * 2]},
        {"x": {0: "batch:1:8", 1: "n:1:32"}, "feats": [{0: "batch", 1: "m:1:32"}, {0: "batch"}]},
        "x feats.0 feats.1",
        lambda r: {"output": r},
    ),
    "args": Member(
        lambda self, x, *feats, gain=1.0: concatenated(self, x, feats) * gain,
        lambda g: {"x": g.x, "feats": (g.y, g.y[:, :1] * 2), "gain": 2.0},
        {"x": {0: "batch:1:8", 1: "n:1:32"}, "feats": {0: "batch"}, "feats.0": {1: "m:1:32"}},
        "x feats.0 feats.1",
        lambda r: {"output": r},
        {"gain": 2.0},
    ),
    "kwargs": Member(
        lambda self, x, **more: [self.attend(x, more["y"], more.get("mask"))],
        lambda g: {"x": g.x, "y": g.y, "mask": g.mask},
        sizes("x", "y", "mask"),
        "x y mask",
        lambda r: {"output_0": r[0]},
    ),
    "inputs without axes": Member(
        without_axes,
        lambda g: {"x": g.x, "y": g.y, **numbers(g)},
        sizes("x", "y"),
        "x y scale step on",
        lambda r: {f"output_{i}": part for i, part in enumerate(r)},
    ),
    "outputs of all kinds": Member(
        many,
        lambda g: {"x": g.x, "y": g.y},
        sizes("x", "y"),
        "x y",
        lambda r: {
            {"x": "x_out", "y": "y_out"}.get(name, name): part
            for name, part in r.items()
            if part is not None
        },
    ),
    "outputs called as inputs": Member(
        twice,
        lambda g: {"hidden": g.x, "y": g.y},
        sizes("hidden", "y"),
        "hidden y",
        lambda r: {"hidden_out_2": r["hidden"], "hidden_out": r["hidden_out"], "y_out": r["y"]},
    ),
    "registered class": Member(
        lambda self, bag: Bag(self.attend(bag.first, bag.second), bag.first),
        lambda g: {"bag": Bag(g.x, g.y)},
        sizes("bag.0", "bag.1"),
        "bag.0 bag.1",
        lambda r: {"0": r.first, "1": r.second},
    ),
    "registered dataclass": Member(
        lambda self, r: Known(self.attend(r.x, r.y, r.mask), r.y),
        lambda g: {"r": Known(g.x, g.y)},
        sizes("r.x", "r.y"),
        "r.x r.y",
        lambda r: {"x": r.x, "y": r.y},
    ),
    "other mappings": Member(
        lambda self, o, d: collections.OrderedDict(z=self.attend(o["x"], d[1][0])),
        lambda g: {
            "o": collections.OrderedDict(x=g.x),
            "d": collections.defaultdict(list, {1: [g.y]}),
        },
        sizes("o.x", "d.1.0"),
        "o.x d.1.0",
        lambda r: {"z": r["z"]},
    ),
    "context": Member(
        split,
        lambda g: {"q": {"x": g.x}, "ctx": Context(g.y, g.mask, 0.5)},
        sizes("q.x", "ctx.y", "ctx.mask"),
        "ctx.y ctx.mask q.x",
        lambda r: r,
        {"ctx.scale": 0.5},
        context=("ctx",),
    ),
}


@pytest.fixture(autouse=True)
def _registered() -> Any:
    nodes = torch.utils._pytree
    nodes.register_pytree_node(
        Bag, lambda bag: ([bag.first, bag.second], None), lambda c, _: Bag(*c)
    )
    torch.export.register_dataclass(Known)
    yield
    for kind in (Bag, Known):
        del nodes.SUPPORTED_NODES[kind]


def converted(value: Any, leaf: Callable[[Tensor], Any]) -> Any:
    """A value with other tensors in it."""
    if isinstance(value, Tensor):
        return leaf(value)
    if isinstance(value, dict):
        made = {key: converted(item, leaf) for key, item in value.items()}
        return type(value)(list, made) if isinstance(value, collections.defaultdict) else made
    if isinstance(value, Pair | Context):
        return type(value)(*(converted(item, leaf) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(converted(item, leaf) for item in value)
    if isinstance(value, Bag):
        return Bag(converted(value.first, leaf), converted(value.second, leaf))
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return type(value)(*(converted(getattr(value, field.name), leaf) for field in fields))
    return value


def call(module: nn.Module, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """As a person writes the call."""
    if "feats" in inputs and "gain" in inputs:
        return module(inputs["x"], *inputs["feats"], gain=inputs["gain"])
    if "pair" in inputs:
        return module(inputs["pair"])
    return module(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_equal_at_other_sizes(name: str, tmp_path: Path) -> None:
    member = MEMBERS[name]
    kind = type("Member", (Attend,), {"forward": member.forward})
    example = member.inputs(given())
    spec = ModelSpec(kind().eval(), example, member.dynamic, context=member.context)
    bundle = crossfuse.export(spec, tmp_path / "b", targets=["ort-cpu"])
    fused = [row.fused["ort-cpu"] for row in bundle.ledger]
    assert len(fused) == (2 if member.forward is twice else 1)
    assert all(fused)
    assert " ".join(t.name for t in bundle.manifest.inputs) == member.names
    assert bundle.manifest.source.get("constants", {}) == member.constants
    double = kind().eval().double()
    with runtime.load(tmp_path / "b") as session:
        for size in SIZES:
            inputs = member.inputs(given(*size))
            exact = converted(inputs, lambda t: t.double() if t.is_floating_point() else t)
            with torch.no_grad():
                expected = member.outputs(call(double, member.forward, exact))
            flat = {"bag": inputs.get("bag")}
            if flat["bag"] is not None:
                inputs = {"bag.0": flat["bag"].first, "bag.1": flat["bag"].second}
            found = session.run(converted(inputs, lambda t: t.numpy()))
            assert list(found) == list(expected)
            for output, value in expected.items():
                truth = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
                assert found[output].shape == truth.shape, output
                assert (found[output].dtype.kind == "f") == (truth.dtype.kind == "f"), output
                np.testing.assert_allclose(found[output], truth, atol=2e-5, err_msg=output)


def test_containers_constants_and_namesakes(tmp_path: Path) -> None:
    """All at once, split, and by each way of giving the inputs."""

    class All(Attend):
        def forward(self, q: Batch, feats: list[Tensor], gain: float = 1.0) -> Any:
            z = self.attend(q.x, torch.cat(feats, 1)) * gain
            return {"q.x": z, "kept": feats[0], "rows": q.x.shape[1], "none": q.mask}

    def inputs(g: Given) -> dict[str, Any]:
        return {"q": Batch(g.x, None), "feats": [g.y, g.y[:, :1]], "gain": 3.0}

    spec = ModelSpec(
        All().eval(),
        inputs(given()),
        {"q.x": {0: "batch:1:8", 1: "n"}, "feats": [{0: "batch", 1: "m"}, {0: "batch"}]},
        context=("feats",),
        examples=[inputs(given(3, 1, 2, 1))],
    )
    bundle = crossfuse.export(spec, tmp_path / "b", targets=["ort-cpu"])
    source = bundle.manifest.source
    assert source["constants"] == {"q.y": None, "q.mask": None, "q.scale": 1.0, "gain": 3.0}
    assert source["renamed_outputs"] == {"q.x": "q.x_out"}
    g = given(1, 7, 4, 5)
    x, y = g.x.numpy(), g.y.numpy()
    with torch.no_grad():
        expected = All().double()(
            Batch(g.x.double(), None), [g.y.double(), g.y[:, :1].double()], 3.0
        )
    with runtime.load(bundle.path) as session:
        context = session.encode(feats=[y, y[:, :1]])
        for found in (
            session.run(q={"x": x}, feats=(y, y[:, :1]), gain=3.0),
            session.run(inputs(g)),
            session.run({"q.x": x, "feats.0": y, "feats.1": np.ascontiguousarray(y[:, :1])}),
            session.query(context, {"q": Batch(x, None)}),
            session.query(context, {"q.x": x}),
        ):
            assert list(found) == ["q.x_out", "kept", "rows"]
            np.testing.assert_allclose(found["q.x_out"], expected["q.x"].numpy(), atol=2e-5)
            np.testing.assert_array_equal(found["kept"], y)
            assert found["rows"] == 7
        with pytest.raises(InputError, match=r"another value.*\(gain\): got 2, expected 3\.0"):
            session.run(inputs(g) | {"gain": 2})
        with pytest.raises(InputError, match=r"names are wrong: got missing feats\.1"):
            session.run(q={"x": x}, feats=[y])
    report = crossfuse.verify(bundle.path, inputs=inputs(g))
    assert report.passed
