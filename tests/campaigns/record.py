"""Campaigns in parts, and what came of all parts together: ``benchmarks/results/campaigns.json``.

``PYTHONPATH=src:tests python tests/campaigns/record.py kills 100 7`` runs one campaign a hundred
times with seed 7 and adds what came of it; a part with the same seed takes the old one's place.
Campaigns against servers have ``asgi`` or ``ray`` before their name (``ray:fuzzed``). Without
arguments, what there is is printed.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from campaigns.operations import run
from crossfuse.core.files import locked, write_whole

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "campaigns.json"
MODULES = (
    "operations", "bundles", "crowds", "limits", "killed", "killed_maps", "short", "memory",
    "stops",
)  # fmt: skip


def part_of(name: str, times: int, seed: int) -> dict[str, Any]:
    """What came of one part."""
    start = time.perf_counter()
    kind, _, attack = name.partition(":")
    if attack:
        servers = importlib.import_module("campaigns.servers")
        with servers.SERVERS[kind]() as served:
            found, about = servers.attacked(attack, times, served, seed)
    else:
        modules = [importlib.import_module(f"campaigns.{module}") for module in MODULES]
        known = {one.__name__: one for module in modules for one in module.CAMPAIGNS}
        found, about = run(known[name], times, seed), ""
    return {
        "seed": seed,
        "times": times,
        "outcomes": dict(sorted(found.items())),
        **({"beside": about} if about else {}),
        "seconds": round(time.perf_counter() - start),
        "with": {one: version(one) for one in engines()},
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def engines() -> list[str]:
    """Packages that a result depends on."""
    found = packages_distributions()
    return sorted({one for name in ("onnxruntime", "numpy", "ray") for one in found.get(name, [])})


def recorded() -> dict[str, list[dict[str, Any]]]:
    """All parts by campaign."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def add(name: str, part: dict[str, Any]) -> None:
    """Keep a part, whoever else does so at the same time."""
    with locked(Path(tempfile.gettempdir()) / "crossfuse-campaigns.lock"):
        known = recorded()
        others = [one for one in known.get(name, []) if one["seed"] != part["seed"]]
        known[name] = sorted([*others, part], key=lambda one: one["seed"])
        write_whole(RESULTS, json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def told(name: str, parts: list[dict[str, Any]]) -> str:
    """One line for a campaign."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part["outcomes"])
    times = sum(part["times"] for part in parts)
    return f"{name}: {times} in {len(parts)} parts: {dict(total)}"


def main() -> None:
    """Run a part, or tell of all."""
    if len(sys.argv) > 1:
        name, times, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        part = part_of(name, times, seed)
        add(name, part)
        sys.stdout.write(f"{name}, seed {seed}: {part}\n")
    for name, parts in recorded().items():
        sys.stdout.write(told(name, parts) + "\n")


if __name__ == "__main__":
    main()
