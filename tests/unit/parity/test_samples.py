"""Inputs whole and as a session takes them: contexts once, and repeated for their queries."""

from __future__ import annotations

import pytest
import torch

from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.samples import example_sample, given_sample, made_sample
from crossfuse.parity.shape_points import EXAMPLE, MADE, TAILS, Planned
from crossfuse.spec.model_spec import ModelSpec

SPEC = zoo_spec("cross_modal_attention", "tiny")
SIZES = {"batch": 6, "length": 3, "context_length": 4}


def test_an_example_is_itself() -> None:
    sample = example_sample(SPEC, SPEC.inputs, 0, "batch")
    assert sample.sizes == {**SPEC.example_sizes, CONTEXTS: SPEC.example_sizes["batch"]}
    assert sample.kind == EXAMPLE
    assert sample.half
    assert sample.whole is not sample.given
    assert all(sample.whole[name] is tensor for name, tensor in SPEC.inputs.items())
    assert not example_sample(SPEC, SPEC.inputs, 4, None).half, "four examples are enough"


def test_each_context_of_a_made_sample_is_kept_once() -> None:
    inputs = SPEC.sample(SIZES, 0)
    first = inputs["b"].clone()
    sample = made_sample(SPEC, Planned(SIZES, (), TAILS, fan_out=3), inputs, 7, "batch")
    assert (sample.sizes[CONTEXTS], sample.seed, sample.kind) == (2, 7, TAILS)
    assert torch.equal(sample.given["b"], first[[0, 3]])
    assert torch.equal(sample.whole["b"], first[[0, 0, 0, 3, 3, 3]])
    assert sample.given["b_mask"].shape[0] == 2
    assert torch.equal(sample.whole["a"], sample.given["a"]), "queries are not repeated"
    assert sample.whole["a"].shape[0] == 6


def test_contexts_are_repeated_along_their_batch_wherever_it_is() -> None:
    inputs = {"x": torch.zeros(2, 4, 3), "y": torch.rand(5, 4, 3), "hidden": torch.rand(4, 5)}
    axes = {"x": {0: "l", 1: "n"}, "y": {0: "s", 1: "n"}, "hidden": {0: "n", 1: "s"}}
    spec = ModelSpec(torch.nn.Identity(), inputs, axes, context=("y", "hidden"))
    sizes = {"l": 2, "n": 4, "s": 5}
    sample = made_sample(spec, Planned(sizes, (), MADE, fan_out=2), dict(inputs), 0, "n")
    assert torch.equal(sample.given["y"], inputs["y"][:, [0, 2]])
    assert torch.equal(sample.whole["y"], inputs["y"][:, [0, 0, 2, 2]])
    assert torch.equal(sample.given["hidden"], inputs["hidden"][[0, 2]])
    assert sample.sizes == {**sizes, CONTEXTS: 2}
    again = given_sample(spec, sample.given, "file", 0, "n")
    assert all(torch.equal(again.whole[name], tensor) for name, tensor in sample.whole.items())
    assert again.sizes == sample.sizes


def test_a_whole_bundle_takes_everything_as_it_is() -> None:
    inputs = SPEC.sample(SIZES, 0)
    sample = made_sample(SPEC, Planned(SIZES, (), MADE), dict(inputs), 0, None)
    assert CONTEXTS not in sample.sizes
    assert all(
        torch.equal(sample.given[n], t) and torch.equal(sample.whole[n], t)
        for n, t in inputs.items()
    )


def test_given_contexts_are_repeated_for_their_queries() -> None:
    given = SPEC.sample(SIZES, 0)
    given = given | {name: given[name][:2] for name in ("b", "b_mask")}
    sample = given_sample(SPEC, given, "file", 0, "batch")
    assert sample.sizes == SIZES | {CONTEXTS: 2}
    assert torch.equal(sample.whole["b"], given["b"].repeat_interleave(3, dim=0))
    assert sample.given["b"] is given["b"]


def test_given_inputs_that_do_not_fit_are_refused_where_they_are_from() -> None:
    given = SPEC.sample(SIZES, 0)
    with pytest.raises(InputError, match="file"):
        given_sample(SPEC, given | {"b": given["b"][:4]}, "file", 0, "batch")
