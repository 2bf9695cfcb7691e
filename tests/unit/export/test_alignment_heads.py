"""Heads that follow the sound: asked for by the settings, and told where they come out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from crossfuse import InputError, ModelSpec
from crossfuse.export.alignment_heads import alignment_texts, with_alignment
from crossfuse.export.capture.census import Sighting
from crossfuse.export.keep_probabilities import kept_probabilities

SITES = [
    "model.encoder.layers.0.self_attn",
    *(f"model.decoder.layers.{n}.{kind}_attn" for n in range(12) for kind in ("self", "encoder")),
]
PAIRS = [[11, 2], [3, 0], [11, 7]]


def site(layer: int) -> str:
    return f"model.decoder.layers.{layer}.encoder_attn"


def spec_of(**settings: Any) -> ModelSpec:
    return ModelSpec(nn.Identity(), {"input": torch.zeros(1)}, generation=settings)


def test_heads_by_layer() -> None:
    assert alignment_texts(spec_of(alignment_heads=PAIRS), SITES) == [
        f"{site(11)}:2,7", f"{site(3)}:0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "sites", "words"),
    [
        ({}, SITES, "name no alignment heads"),
        ({"alignment_heads": None}, SITES, "name no alignment heads"),
        ({"alignment_heads": [[1], "12", [True, 0], [-1, 0]]}, SITES, "name no alignment heads"),
        ({"alignment_heads": [[12, 0], [3, 1]]}, SITES, r"not found .*layers \[12\]"),
        ({"alignment_heads": PAIRS}, ["decoder.block.3.cross"], r"layers \[11, 3\]"),
    ],
)
def test_heads_that_are_not_there(settings: dict[str, Any], sites: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        alignment_texts(spec_of(**settings), sites)


def test_where_they_come_out() -> None:
    spec = spec_of(alignment_heads=PAIRS)
    found = with_alignment(spec, {site(11): (7, 5, 2), site(3): None, site(4): None})
    assert found.generation["alignment_outputs"] == [
        [f"probabilities.{site(11)}", 2],
        [f"probabilities.{site(3)}", 0],
        [f"probabilities.{site(11)}", 0],
    ]
    assert found.generation["alignment_heads"] == PAIRS
    for lacking in ({site(11): (7, 2)}, {site(11): (7,), site(3): None}, {}):
        assert with_alignment(spec, lacking) is spec
    own = spec_of(alignment_heads=PAIRS, alignment_outputs=[["mine", 0]])
    assert with_alignment(own, {site(11): None, site(3): None}) is own


def test_asked_for_with_others() -> None:
    sightings = [Sighting(name, "sdpa") for name in SITES]
    spec = replace(
        spec_of(alignment_heads=PAIRS), keep_probabilities=("alignment_heads", f"{site(0)}:1")
    )
    kept = kept_probabilities(spec, sightings)
    assert kept.sites == (site(11), site(3), site(0))
    assert [name for name, _ in kept.spec.generation["alignment_outputs"]] == [
        f"probabilities.{site(layer)}" for layer in (11, 3, 11)
    ]
