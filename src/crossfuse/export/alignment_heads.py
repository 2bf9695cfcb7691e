"""The heads of a decoder's attentions that follow the sound, by which words get their times.

The model's settings of generation name them as pairs of a decoder layer and a head, under
``alignment_heads``. Where their probabilities are kept, the bundle's settings say under
``alignment_outputs`` which outputs hold them: pairs of an output of the step stage and a head of
it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from crossfuse.core.tensors import ALIGNMENT_OUTPUTS, PROBABILITIES
from crossfuse.errors import Advice, InputError, Said
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["ALIGNMENT", "alignment_texts", "with_alignment"]

ALIGNMENT = "alignment_heads"
"""The name in the settings, and the text that asks for these heads."""

_CROSS = re.compile(r"(?:^|\.)layers\.(\d+)\.encoder_attn")
"""How decoders of the library call a layer's attention over what was encoded."""

_SITE = Said("--keep-probabilities SITE:HEAD,HEAD", "keep_probabilities=['SITE:HEAD,HEAD']")


def alignment_texts(spec: ModelSpec, sites: Collection[str]) -> list[str]:
    """The alignment heads as ``SITE:HEAD,HEAD``.

    Args:
        spec: whose settings name them.
        sites: of the model.

    Raises:
        InputError: settings that name none, or layers that are not found.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in _pairs(spec):
        by_layer.setdefault(layer, []).append(head)
    found = _cross_sites(sites)
    missing = [layer for layer in by_layer if layer not in found]
    if not by_layer or missing:
        raise InputError(
            "the attentions of the alignment heads are not found"
            if missing
            else "the model's settings of generation name no alignment heads",
            where=ALIGNMENT,
            got=f"layers {missing}" if missing else "nothing",
            do=Advice("Name the attentions over the sound, with their heads: {}", _SITE),
        )
    return [f"{found[layer]}:{','.join(map(str, heads))}" for layer, heads in by_layer.items()]


def with_alignment(spec: ModelSpec, kept: Mapping[str, tuple[int, ...] | None]) -> ModelSpec:
    """The model, whose settings say where its alignment heads come out if all of them do.

    Args:
        spec: of the model.
        kept: heads of each site whose probabilities are a further output; None for all.
    """
    found, pairs = _cross_sites(kept), _pairs(spec)
    if not pairs or ALIGNMENT_OUTPUTS in spec.generation:
        return spec
    places: list[list[object]] = []
    for layer, head in pairs:
        site = found.get(layer)
        heads = None if site is None else kept[site]
        if site is None or (heads is not None and head not in heads):
            return spec
        places.append([PROBABILITIES + site, head if heads is None else heads.index(head)])
    return replace(spec, generation={**spec.generation, ALIGNMENT_OUTPUTS: places})


def _pairs(spec: ModelSpec) -> list[tuple[int, int]]:
    """Layers and heads that the settings name; what is no such pair is none."""
    given = spec.generation.get(ALIGNMENT)
    pairs = given if isinstance(given, list | tuple) else []
    return [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in pair)
    ]


def _cross_sites(sites: Collection[str]) -> dict[int, str]:
    """Attentions over what was encoded, by their layer."""
    found = ((_CROSS.search(site), site) for site in sites if "#" not in site)
    return {int(match[1]): site for match, site in found if match is not None}
