"""The commands ``crossfuse inspect`` and ``crossfuse models``."""

from __future__ import annotations

import json
from dataclasses import asdict

from crossfuse.commands.options import BundlePath, Json

__all__ = ["inspect", "models"]


def inspect(bundle: BundlePath, as_json: Json = False) -> None:
    """Show a bundle: boundary, files, fusion ledger, parity. Checks every file's hash."""
    from crossfuse.bundle.store import open_bundle
    from crossfuse.commands.output import Output
    from crossfuse.commands.tables import show_bundle

    opened = open_bundle(bundle)
    opened.verified(opened.manifest.files)
    output = Output(as_json=as_json)
    output.result(json.loads(opened.manifest.dumps()), lambda: show_bundle(output, opened))


def models(as_json: Json = False) -> None:
    """List the zoo, one line each."""
    from crossfuse.commands.output import Output
    from crossfuse.models.registry import SIZES, ZOO

    output = Output(as_json=as_json)
    width = max(map(len, ZOO))

    def render() -> None:
        for entry in ZOO.values():
            output.line(f"{entry.name:{width}}  {entry.summary} ({entry.published})")

    output.result([asdict(entry) | {"sizes": SIZES} for entry in ZOO.values()], render)
