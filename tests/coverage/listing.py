"""A list of cases, made by a decorator of the functions that build their specs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from coverage.cases import Case
from crossfuse import ModelSpec

__all__ = ["Build", "case_into"]

Build = Callable[[], ModelSpec]


def case_into(cases: dict[str, Case]) -> Callable[..., Callable[[Build], Build]]:
    """A decorator that puts cases into a list, called as their functions are.

    Args:
        cases: the list, by name.
    """

    def case(
        what: str, *, own: int = 0, cross: int = 0, unfused: int = 0, why: str = ""
    ) -> Callable[[Build], Build]:
        def keep(build: Build) -> Build:
            def make() -> ModelSpec:
                torch.manual_seed(0)
                return build()

            name = build.__name__
            cases[name] = Case(name, make, what, own, cross, unfused, why)
            return build

        return keep

    return case
