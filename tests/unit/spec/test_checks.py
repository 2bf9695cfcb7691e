"""A wrong field is told by its name, where it was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crossfuse import InputError, ModelSpec
from crossfuse.spec.checks import check_fields, check_input, check_tensors


def good(**changes: Any) -> ModelSpec:
    return ModelSpec(**{"module": nn.ReLU(), "inputs": {"input": torch.ones(2, 3)}, **changes})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("module", nn.functional.relu, r"wrong type \(ModelSpec\.module\): got a .*function"),
        ("inputs", [torch.ones(1)], r"\(ModelSpec\.inputs\): got a list"),
        ("inputs", {}, "the spec has no inputs"),
        ("inputs", {3: torch.ones(1)}, "an input's name is no text.*got 3"),
        ("inputs", {"": torch.ones(1)}, "an input's name is no text"),
        ("dynamic", None, r"\(ModelSpec\.dynamic\): got None.*Leave it out"),
        ("dynamic", {"input": 0}, r"ModelSpec\.dynamic\['input'\]\): got 0"),
        ("dynamic", {"input": {"0": "n"}}, "a dynamic axis is no number.*got '0'"),
        ("dynamic", {"input": {True: "n"}}, "a dynamic axis is no number.*got True"),
        ("dynamic", {"input": {0: 4}}, r"dynamic\['input'\]\[0\]\): got 4"),
        ("dynamic", {"inptu": {0: "n"}}, "dynamic names an input.*Did you mean 'input'"),
        ("context", "input", r"takes several names \(ModelSpec\.context\).*\('input',\)"),
        ("context", [1], r"\(ModelSpec\.context\): got a list"),
        ("drop_outputs", "x", r"takes several names \(ModelSpec\.drop_outputs\)"),
        ("drop_outputs", {"x"}, r"\(ModelSpec\.drop_outputs\): got a set"),
        ("name", "", r"\(ModelSpec\.name\): got ''"),
        ("decode", 3, r"\(ModelSpec\.decode\): got 3"),
        ("decode", "ids", "decode names an input that doesn't exist"),
        ("sampler", 1, r"\(ModelSpec\.sampler\): got 1"),
        ("tracing", None, r"\(ModelSpec\.tracing\): got None"),
        ("vocabulary", {"ids": 3}, "vocabulary names an input that doesn't exist"),
        ("processing", {"code.py": ""}, "processing names a file that a bundle doesn't hold"),
        ("processing", {"../tokenizer.json": ""}, "a file that a bundle doesn't hold"),
        ("processing", {"tokenizer.json": b"{}"}, r"processing\['tokenizer\.json'\]"),
        ("processing", "tokenizer.json", r"\(ModelSpec\.processing\): got"),
    ],
)
def test_fields(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        good(**{field: value})


def test_what_is_right_passes() -> None:
    check_fields(good(dynamic={"input": {0: "n"}}, context=["input"], drop_outputs=("*",)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(2), r"inputs\['x'\]\): got a NumPy array.*from_numpy"),
        ([1.0], "got a list.*Wrap the module"),
        (None, r"got a NoneType \(None\)"),
        (3, r"got an int \(3\)"),
        (torch.ones(2, device="meta"), "without values"),
        (torch.ones(2, 2).to_sparse(), "not dense.*to_dense"),
        (torch.ones(2, dtype=torch.complex64), "a tensor of complex64.*float32"),
    ],
)
def test_one_input(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_input("x", value)


def test_parameters_hold_values() -> None:
    check_tensors(good())
    spec = good(module=nn.Linear(3, 4, device="meta"))
    with pytest.raises(InputError, match=r"hold no values.*got weight, bias.*to_empty"):
        check_tensors(replace(spec, name="mine"))
