"""`crossfuse.verify`: against the bundle's results, a model's, or the fused graph's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import crossfuse
from crossfuse import InputError, ModelSpec
from crossfuse.api.verify import verify
from crossfuse.models.registry import zoo_spec

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
NAME = "cross_modal_attention"


def test_it_is_the_public_function() -> None:
    assert crossfuse.verify is verify


def changed(**inputs: torch.Tensor) -> ModelSpec:
    spec = zoo_spec(NAME, "tiny")
    return replace(spec, inputs={**spec.inputs, **inputs}, dynamic={}, sampler=None, context=())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ModelSpec(nn.ReLU(), {"input": torch.ones(2, 3)}), "other inputs: got inputs input, exp"),
        (changed(a=torch.zeros(2, 7, 31)), r"other inputs \(a\): got \[2, 7, 31\]"),
        (changed(b_mask=torch.ones(2, 11, 1, dtype=torch.int64)), r"other inputs \(b_mask\)"),
        ("clip", "not the bundle's model|other inputs"),
    ],
)
def test_another_model(source: Any, message: str) -> None:
    """Said before it is run: none of these could be traced or would compare."""
    told: list[str] = []
    with pytest.raises(InputError, match=message):
        verify(OLD, source=source, step=told.append)
    assert told == []


def test_the_sources_own_dimensions_do_not_matter() -> None:
    """They are the bundle's, whatever the source calls them; its sampler is asked by its own."""
    spec = zoo_spec(NAME, "tiny")
    asked: list[set[str]] = []
    own = spec.sampler
    assert own is not None

    def sampler(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        asked.append(set(sizes))
        names = {"rows": "batch", "left": "length", "right": "context_length"}
        return own({names[name]: size for name, size in sizes.items()}, generator)

    named = {"batch": "rows", "length": "left", "context_length": "right"}
    axes = {n: {i: named[d] for i, d in a.items()} for n, a in spec.axes.items()}
    renamed = replace(spec, dynamic=axes, sampler=sampler)
    assert verify(OLD, source=renamed, seed=7).passed
    assert asked
    assert all(names == set(named.values()) for names in asked)
    assert verify(OLD, source=replace(spec, dynamic={}, sampler=None), seed=7).passed


def test_an_unknown_target_is_the_bundles_to_refuse() -> None:
    with pytest.raises(crossfuse.BundleError, match="Did you mean 'ort-cpu'"):
        verify(OLD, "ort-cup")
    with pytest.raises(crossfuse.BundleError, match="no such target"):
        verify(OLD, "tensorrt-rtx")
