"""The coverage suite's lists of cases: modules that each have a ``CASES``, by name.

A list is added by its module's name here. Names of cases are unique over all lists.
"""

from __future__ import annotations

import importlib

from coverage.cases import Case

__all__ = ["LISTS", "all_cases", "cases_of"]

LISTS: dict[str, str] = {
    "coverage.cases": "Written by hand: which attentions each model has is counted beforehand",
    "coverage.type_cases": "Types of `transformers`, made tiny by one rule (`shrink.py`)",
    "coverage.diffusers_cases": "Models of `diffusers`",
    "coverage.library_cases": "Modules of other libraries",
}
"""Modules, and what their models are; the page has a table for each."""


def cases_of(module: str) -> dict[str, Case]:
    """The cases of one list, by name."""
    found: dict[str, Case] = importlib.import_module(module).CASES
    return found


def all_cases() -> dict[str, Case]:
    """The cases of all lists.

    Raises:
        ValueError: two lists have a case of one name.
    """
    cases: dict[str, Case] = {}
    for module in LISTS:
        for name, case in cases_of(module).items():
            if name in cases:
                raise ValueError(f"{module} and another list have a case {name!r}")
            cases[name] = case
    return cases
