"""What ``crossfuse`` takes before the name of a command."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["crossfuse"]


def _print_version(asked: bool) -> None:
    if asked:
        from crossfuse import __version__

        typer.echo(f"crossfuse {__version__}")
        raise typer.Exit


def crossfuse(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Deploy PyTorch cross-attention models, with proof: fused, verified, run without PyTorch."""
