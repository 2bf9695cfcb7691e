"""A call's arguments: flat names, constants, and the call as its user makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossfuse import InputError, ModelSpec
from crossfuse.spec.arguments import Arguments


@dataclass
class Batch:
    x: Any
    mask: Any = None
    scale: Any = 1.0


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


def test_tensors_and_constants_by_flat_names() -> None:
    given = {
        "a": ones(1),
        "batch": Batch(ones(2), scale=0.5),
        "more": {"k": [ones(3), True, "text"], "n": np.float32(2)},
        "mask": None,
    }
    found = Arguments(given)
    assert {n: len(t) for n, t in found.tensors.items()} == {"a": 1, "batch.x": 2, "more.k.0": 3}
    assert found.constants == {
        "batch.mask": None,
        "batch.scale": 0.5,
        "more.k.1": True,
        "more.k.2": "text",
        "more.n": 2.0,
        "mask": None,
    }
    infinite = Arguments({"x": ones(1), "low": float("-inf"), "high": 2.0})
    assert infinite.plain_constants() == {"low": "-inf", "high": 2.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"inputs\['x'\]\): got a set.*Wrap the module"),
        ((i for i in range(2)), r"inputs\['x'\]\): got a generator"),
        (object(), r"inputs\['x'\]\): got an object"),
        ({"a": [ones(1), object()]}, r"inputs\['x\.a\.1'\]\): got an object"),
        (Batch(torch.float32), r"inputs\['x\.x'\]\): got a dtype"),
        ([np.ones(2)], r"inputs\['x\.0'\]\): got a NumPy array.*from_numpy"),
        (list(range(1000)), r"many numbers.*got 1000 numbers.*torch\.tensor"),
        ({"a.b": ones(1), "a": {"b": ones(1)}}, r"one name \(x\.a\.b\)"),
    ],
)
def test_what_no_argument_holds(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Arguments({"x": value})


def test_other_arguments_may_be_flat() -> None:
    own = Arguments({"b": Batch(ones(2), ones(2), 0.5)})
    for other in (
        {"b": Batch(ones(3), ones(3), 0.5)},
        {"b.x": ones(3), "b.mask": ones(3)},
        {"b": {"x": ones(3), "mask": ones(3)}},
        {"b.x": ones(3), "b": {"mask": ones(3), "scale": 0.5}},
    ):
        assert {n: len(t) for n, t in own.flat(other, "here").items()} == {"b.x": 3, "b.mask": 3}
    with pytest.raises(InputError, match=r"another value \(here, b\.scale\): got 2, expected 0\.5"):
        own.flat({"b": Batch(ones(3), ones(3), 2)}, "here")


def returned(forward: Any) -> nn.Module:
    return type("Given", (nn.Module,), {"forward": forward})()


@pytest.mark.parametrize(
    ("forward", "given", "expected"),
    [
        (lambda self, a, b: (a, b), {"b": ones(1), "a": 3}, "(3, T)"),
        (lambda self, a, /, b: (a, b), {"a": ones(1), "b": None}, "(T, None)"),
        (lambda self, a, *rest: (a, rest), {"a": ones(1), "rest": [ones(1), 2]}, "(T, (T, 2))"),
        (lambda self, a=7, *rest: (a, rest), {"rest": (ones(1),)}, "(7, (T,))"),
        (lambda self, *rest, k=1: (rest, k), {"rest": ones(1), "k": 2}, "((T,), 2)"),
        (lambda self, a, **more: (a, more), {"a": ones(1), "z": 1}, "(T, {'z': 1})"),
        (lambda self, b: (b.x, b.scale), {"b": Batch(ones(1))}, "(T, 1.0)"),
    ],
)
def test_the_call_is_the_users(forward: Any, given: dict[str, Any], expected: str) -> None:
    arguments = Arguments(given)
    other = {name: tensor * 2 for name, tensor in arguments.tensors.items()}
    result = arguments.call(returned(forward), other)
    assert str(result).replace("tensor([2.])", "T") == expected


def test_what_stands_in_front_of_a_star_is_needed() -> None:
    arguments = Arguments({"rest": (ones(1),)})
    with pytest.raises(InputError, match=r"an argument is missing.*\(a\)"):
        arguments.call(returned(lambda self, a, *rest: a), arguments.tensors)


class Sum(nn.Module):
    def forward(self, feats: list[Tensor], ctx: Batch) -> Tensor:
        return sum(f.sum(1) for f in feats) * ctx.scale + ctx.x.sum(1)


def spec(**changes: Any) -> ModelSpec:
    inputs = {"feats": [ones(2, 3), ones(2, 4)], "ctx": Batch(ones(2, 5), scale=2)}
    return ModelSpec(Sum(), **{"inputs": inputs, **changes})


@pytest.mark.parametrize(
    "dynamic",
    [
        {"feats.0": {0: "b", 1: "n"}, "feats.1": {0: "b"}, "ctx.x": {0: "b"}},
        {"feats": [{0: "b", 1: "n"}, {0: "b"}], "ctx": {"x": {0: "b"}, "mask": None}},
        {"feats": {0: "b"}, "feats.0": {1: "n"}, "ctx": Batch({0: "b"}, None, None)},
        {"feats": {0: {0: "b", 1: "n"}, 1: {0: "b"}}, "ctx": {0: "b"}},
    ],
)
def test_axes_in_any_form(dynamic: Any) -> None:
    made = spec(dynamic=dynamic)
    assert made.axes == {"feats.0": {0: "b", 1: "n"}, "feats.1": {0: "b"}, "ctx.x": {0: "b"}}
    assert made.example_sizes == {"b": 2, "n": 3}
    assert made.with_dynamic({"feats": {0: "rows"}}).axes["feats.1"] == {0: "rows"}


def test_a_spec_speaks_of_flat_names() -> None:
    example = {"feats": (ones(2, 3), ones(2, 4)), "ctx": {"x": ones(2, 5), "scale": 2}}
    made = spec(context=("ctx",), examples=[example])
    assert list(made.inputs) == ["feats.0", "feats.1", "ctx.x"]
    assert [list(example) for example in made.examples] == [list(made.inputs)]
    assert made.context == ("ctx.x",)
    assert made.run(made.inputs)["output"].tolist() == [19.0, 19.0]
    with pytest.raises(InputError, match="context names an input that doesn't exist.*got 'cty'"):
        spec(context=("cty",))
    with pytest.raises(InputError, match="none of the inputs holds a tensor.*got ctx = 3"):
        ModelSpec(Sum(), {"feats": [], "ctx": 3})


class Cache:
    """As the base of caches in ``transformers`` is called."""


class GrowingCache(Cache):
    pass


def test_a_cache_among_the_arguments_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="got a GrowingCache") as caught:
        Arguments({"x": ones(2), "past": GrowingCache()})
    assert "switch use_cache off" in str(caught.value)
