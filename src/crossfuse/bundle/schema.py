"""The manifest's JSON schema, made from its classes: ``python -m crossfuse.bundle.schema`` writes
it."""

from __future__ import annotations

from pathlib import Path

from crossfuse.bundle.manifest import SCHEMA_VERSION, Manifest
from crossfuse.core.json_schema import schema_text, write_schema

__all__ = ["SCHEMA_FILE", "manifest_schema"]

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")


def manifest_schema() -> str:
    """The schema's text."""
    return schema_text(Manifest, f"crossfuse bundle manifest, schema version {SCHEMA_VERSION}")


if __name__ == "__main__":
    write_schema(SCHEMA_FILE, manifest_schema())
