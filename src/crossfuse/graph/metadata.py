"""What nodes and values of a graph carry beside their computation: the module that they came from,
the attention that they compute, the range of the indices that they hold."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

__all__ = [
    "BESIDE",
    "CAPTURED",
    "COUNTS",
    "MODULE",
    "RANGE",
    "SCOPES",
    "SITE",
    "id_counts",
    "index_range",
    "inherited",
    "module_path",
    "plain_path",
    "site_of",
]

MODULE = "crossfuse.module"
"""Metadata key of the PyTorch module path that a node came from."""

CAPTURED = "crossfuse.captured"
"""Metadata key that says, during export, which pass made an attention node; absent where tracing
gave it."""

BESIDE = "crossfuse.beside"
"""Metadata key, during export, of a softmax that is computed beside an attention, and is none."""

SITE = "crossfuse.site"
"""Metadata key under which a node carries the name of the attention it computes."""

COUNTS = "crossfuse.counts"
"""Metadata key of an input that holds ids: ``ID:NUMBER`` for each id of which every row holds so
many, joined by commas."""

RANGE = "crossfuse.range"
"""Metadata key of an input that holds indices: ``LOW:HIGH``, the highest left out where it isn't
known."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which PyTorch's exporter lists the modules around a node."""


def site_of(node: ir.Node) -> str | None:
    """The site that a node computes, in any stage of lowering."""
    return node.metadata_props.get(SITE)


def module_path(node: ir.Node) -> str:
    """The path of the module that a node came from; empty for the root or where unknown.

    PyTorch's exporter writes it into the node's metadata; for other files the pass `note_modules`
    does.
    """
    scopes = node.metadata_props.get(SCOPES)
    if not scopes:
        return node.metadata_props.get(MODULE, "")
    try:
        modules = [str(scope) for scope in ast.literal_eval(scopes)[:-1] if scope]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return ""
    return plain_path(modules[-1]) if modules else ""


def plain_path(path: str) -> str:
    """A module's path as the model has it: without the number of a call, and without what
    ``torch.compile`` puts around a module."""
    parts = re.sub(r"@\d+", "", path).split(".")
    return ".".join(part for part in parts if part != "_orig_mod")


def inherited(node: ir.Node) -> dict[str, str]:
    """The metadata that is passed on to what is written in a node's place: all but what says that
    the node itself is an attention."""
    return {
        key: text
        for key, text in node.metadata_props.items()
        if key not in (SITE, CAPTURED, BESIDE)
    }


def id_counts(value: ir.Value) -> tuple[tuple[int, int], ...]:
    """Ids of which each row of an input holds a number that is known, and that number."""
    pairs = (pair.split(":") for pair in value.metadata_props.get(COUNTS, "").split(",") if pair)
    return tuple((int(token), int(count)) for token, count in pairs)


def index_range(value: ir.Value) -> tuple[int, int | None] | None:
    """Lowest and highest index that an input may hold; None where it is not known to hold any.

    The highest alone may be unknown (None).
    """
    if RANGE not in value.metadata_props:
        return None
    low, high = value.metadata_props[RANGE].split(":")
    return int(low), int(high) if high else None
