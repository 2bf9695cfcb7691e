"""Options that the commands of servers share are the same in all of them."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest

from crossfuse.commands import serve_options
from crossfuse.commands.map import map_command
from crossfuse.commands.serve import package, serve
from crossfuse.serve.limits import Limits
from crossfuse.serve.load_engine import EngineOptions


@pytest.mark.parametrize("command", [package, serve, map_command])
def test_defaults_are_those_of_the_library(command: Any) -> None:
    engine, limits = EngineOptions(), Limits()
    expected = {
        "cache_mb": engine.cache_mb,
        "merge": engine.merge,
        "max_rows": engine.max_rows,
        "max_batch": limits.max_batch,
        "allow_nan": limits.allow_nan,
        "max_bytes": limits.max_bytes,
        "max_queue": limits.max_queue,
        "max_json_bytes": limits.max_json_bytes,
        "body_timeout": limits.body_seconds,
    }
    parameters = inspect.signature(command).parameters
    shared = expected.keys() & parameters.keys()
    assert {"cache_mb", "merge", "allow_nan"} <= shared
    for name in shared:
        assert parameters[name].default == expected[name], name


def test_one_option_has_one_type_and_panel() -> None:
    hints = [get_type_hints(c, include_extras=True) for c in (package, serve, map_command)]
    for name, option in (("cache_mb", "CacheMb"), ("allow_nan", "AllowNan"), ("merge", "Merge")):
        assert {hint[name] for hint in hints} == {getattr(serve_options, option)}
    assert serve_options.CacheMb.__metadata__[0].rich_help_panel == serve_options.REQUESTS
