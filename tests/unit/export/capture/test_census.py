"""The census counts what eager modules compute, and says what it saw."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import fused_attention
from crossfuse.export.capture.census import Sighting, census

HEADS = {"num_heads": 2, "kv_num_heads": 2, "scale": 0.5}


class Of(nn.Module):
    """A model that runs a function in a module named ``inner``."""

    def __init__(self, function: Callable[[nn.Module, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.inner = Inner(function)

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.inner(x, y)


class Inner(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.function(self, x, y)


def seen(function: Callable[[nn.Module, Tensor, Tensor], object]) -> list[Sighting]:
    inputs = {"x": torch.randn(2, 3, 4), "y": torch.randn(2, 5, 4)}
    return census(Of(function).eval(), inputs)


def normalised(weights: Tensor) -> Tensor:
    """Over the axis before the last."""
    return weights / weights.sum(-2, keepdim=True)


def mixed(m: nn.Module, x: Tensor) -> Tensor:
    """Scores that weights mix (talking heads)."""
    return (x @ x.mT) @ m.weight[:3, :2]


def written_softmax(scores: Tensor) -> Tensor:
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def without_logarithm(scores: Tensor) -> Tensor:
    return (scores - scores.logsumexp(-1, keepdim=True)).exp()


@pytest.mark.parametrize(
    ("function", "form", "between"),
    [
        (lambda m, x, y: F.scaled_dot_product_attention(x, y, y), "sdpa", ()),
        (lambda m, x, y: fused_attention(x, y, y, **HEADS), "operator", ()),
        (lambda m, x, y: (x @ y.mT).softmax(-1) @ y, "products", ("softmax",)),
        (lambda m, x, y: (x @ y.mT / 2).tanh() @ y, "products", ("div", "tanh")),
        (lambda m, x, y: (y.mT @ (y @ x.mT).softmax(-2)).mT, "products", ("softmax",)),
        (
            lambda m, x, y: (y.mT @ normalised((y @ x.mT).exp())).mT,
            "products",
            ("exp", "sum", "div"),
        ),
        (lambda m, x, y: torch.einsum("bld,bsd->bls", x, y).exp() @ y, "products", ("exp",)),
        (lambda m, x, y: (mixed(m, x).softmax(-1)) @ x[:, :2], "products", None),
        (lambda m, x, y: written_softmax(mixed(m, x)) @ x[:, :2], "products", None),
        (lambda m, x, y: without_logarithm(mixed(m, x)) @ x[:, :2], "products", None),
    ],
    ids=[
        *("sdpa", "operator", "by hand", "no softmax", "transposed", "written out", "einsum"),
        *("mixed by weights", "mixed and written out", "mixed and without its logarithm"),
    ],
)
def test_each_form_of_attention_is_seen_once(function: Callable, form: str, between: tuple) -> None:
    (sighting,) = seen(function)
    assert (sighting.module, sighting.form, sighting.returned) == ("inner", form, False)
    assert sighting.normal or between in (("div", "tanh"), ("exp",))
    if form == "products" and between is not None:
        assert sighting.between == between


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, y: (x @ m.weight).softmax(-1) @ m.weight,
        lambda m, x, y: (x @ y.mT) @ y,
        lambda m, x, y: x.softmax(-1),
    ],
    ids=["weights", "linear in both", "softmax alone"],
)
def test_what_is_no_attention_is_not_counted(function: Callable) -> None:
    assert seen(function) == []


def test_probabilities_that_are_returned_are_told() -> None:
    def both(m: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        weights = (x @ y.mT).softmax(-1)
        return weights @ y, weights

    (sighting,) = seen(both)
    assert sighting.returned
    assert "its attention probabilities are an output of the model" in sighting.reason


@pytest.mark.parametrize(
    ("sighting", "reason"),
    [
        (Sighting("m", "sdpa"), "does not hold it as one operator"),
        (Sighting("m", "products", ("div", "tanh")), r"by a softmax \(between .*: div, tanh\)"),
        (Sighting("m", "products", ("exp", "sum")), "in a form that is not known .*: exp, sum"),
        (Sighting("m", "products", ("sigmoid", "sum")), "by a softmax .*: sigmoid, sum"),
        (Sighting("m", "products", ("softmax",)), "in a form that is not known .*: softmax"),
        (Sighting("m", "products"), "not normalised by a softmax .*: nothing"),
    ],
)
def test_reasons(sighting: Sighting, reason: str) -> None:
    assert re.search(reason, sighting.reason)
