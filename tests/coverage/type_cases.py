"""Cases of the coverage suite by types of ``transformers``: each made tiny by `shrink`, with inputs
that are planned from its configuration. The list is frozen in `types.txt`."""

from __future__ import annotations

from pathlib import Path

from coverage.cases import Case
from coverage.shrink import CannotShrinkError, tiny_model
from crossfuse import ModelSpec, huggingface_spec

__all__ = ["CASES", "IMAGES", "SHOWN", "TYPES", "spec_of"]

IMAGES = (32, 64, 128)
"""Sizes of images that are tried in turn: a hierarchy halves them several times."""


def spec_of(model_type: str) -> ModelSpec:
    """The spec of a tiny model of a type, at the first size of images that it stands.

    Raises:
        CannotShrinkError: there is no tiny model of it.
        CrossfuseError: what the planner says at the first size.
    """
    from crossfuse.errors import InputError

    first: InputError | None = None
    for image in IMAGES:
        try:
            return huggingface_spec(tiny_model(model_type, image))
        except CannotShrinkError:
            if first is None:
                raise
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def _case(model_type: str) -> Case:
    return Case(f"type:{model_type}", lambda: spec_of(model_type), "", None, None)


TYPES: tuple[str, ...] = tuple(Path(__file__).with_name("types.txt").read_text().split())
"""Model types: what combines several kinds of inputs, and others with attention."""

SHOWN: tuple[str, ...] = tuple(Path(__file__).with_name("shown.txt").read_text().split())
"""About half of those that were exported with every attention fused, the cheapest of their kinds:
their exports are tests."""

CASES = {case.name: case for case in map(_case, TYPES)}
