"""The command ``crossfuse sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossfuse.commands.options import BundlePath, Json

__all__ = ["sign"]


def sign(
    bundle: BundlePath,
    key: Annotated[
        Path,
        typer.Option(
            "--key", metavar="KEY.pem", help="The private key, of an elliptic curve, in PEM."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.sig",
            help="Where omitted, beside the bundle's folder.",
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="Whose first line opens the key."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle with a key, so that others can tell that it is yours. Needs no network."""
    from crossfuse.api.sign import sign as sign_bundle
    from crossfuse.commands.output import Output

    password = None
    if password_file is not None:
        password = password_file.read_text(encoding="utf-8").partition("\n")[0]
    place = sign_bundle(bundle, key, out, password=password)
    output = Output(as_json=as_json)
    output.result({"signature": str(place)}, lambda: output.line(f"signature written to {place}"))
