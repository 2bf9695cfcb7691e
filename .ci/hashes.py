"""Writes `constraints-hashes.txt`: the pins of `constraints.txt` with the SHA-256 of each file that
pip would install on Linux (x86-64) with Python 3.11; ``PYTHONS="3.11.15 3.12.15"`` for more.

``python .ci/hashes.py`` asks pip, whose own settings say where packages come from, and installs
nothing. ``pip install --require-hashes --no-deps -r constraints-hashes.txt`` then takes these very
files, and no others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11.15",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
HEAD = (
    "# Made of constraints.txt by .ci/hashes.py: pip install --require-hashes --no-deps -r FILE.\n"
)


def pins() -> dict[str, str]:
    """Normal name → pin."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(line.partition("==")[0]): line for line in lines if "==" in line}


def normal(name: str) -> str:
    """A project's name as registries know it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def hashes(python: str, chosen: list[str]) -> dict[str, str]:
    """Normal name → SHA-256 of the file that pip chooses on that Python; it may be a source."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps"]
    command += ["--ignore-installed", "--report", "-", "--python-version", python]
    command += ["--prefer-binary", "--implementation", "cp", "--target", "none"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(chosen))
        file.flush()
        done = subprocess.run(
            [*command, "-r", file.name], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"Python {python}: {done.stderr}")
    return {
        normal(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"]
        for one in json.loads(done.stdout)["install"]
    }


def main() -> None:
    """Write the file."""
    known = pins()
    found: defaultdict[str, set[str]] = defaultdict(set)
    for python in os.environ.get("PYTHONS", " ".join(PYTHONS)).split():
        for name, digest in hashes(python, list(known.values())).items():
            found[name].add(digest)
    lines = [HEAD]
    for name, pin in known.items():
        marks = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(found[name]))
        lines.append(f"{pin}{marks}\n")
    (ROOT / "constraints-hashes.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
