"""The campaigns of `servers.py`, in short: against the server without Ray, then against a real
one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from campaigns.servers import CAMPAIGNS, SERVERS, Served, attacked

TIMES = {
    "fuzzed": 600, "idle_heads": 60, "idle_bodies": 300, "slow_bodies": 20, "long_json": 6,
    "large_bodies": 4, "floods": 800,
}  # fmt: skip


@pytest.fixture(scope="module", params=list(SERVERS))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with SERVERS[request.param]() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CAMPAIGNS))
def test_nobody_pays_for_what_another_sends(served: Served, name: str) -> None:
    found, _ = attacked(name, TIMES[name], served, seed=1)
    assert sum(found.values()) == TIMES[name]
