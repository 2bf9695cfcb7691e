"""Writes `constraints-hashes.txt`: the pins of `constraints.txt` with the SHA-256 of each file that
pip would install on Linux (x86-64) with the Pythons that crossfuse supports, or with those that the
variable ``PYTHONS`` names.

``python .ci/hashes.py`` asks pip's own finder, whose settings say where packages come from, for the
file that it would choose, and takes the hash that the index has for it: nothing is downloaded or
installed. ``pip install --require-hashes --no-deps -r constraints-hashes.txt`` then takes these
very files, and no others.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from pip._internal.cli.cmdoptions import make_target_python
from pip._internal.commands import create_command
from pip._vendor.packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYTHONS = os.environ.get("PYTHONS", "3.11.15 3.12.15 3.13.13").split()
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
HEAD = (
    "# Made of constraints.txt by .ci/hashes.py: pip install --require-hashes --no-deps -r FILE.\n"
)


def pins() -> dict[str, str]:
    """Name → version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {one[1]: one[2] for one in found if one is not None}


def hashes(python: str, chosen: dict[str, str]) -> dict[str, str]:
    """Name → SHA-256 of the file that pip chooses on that Python; it may be a source."""
    words = ["--no-deps", "--prefer-binary", "--implementation", "cp", "--python-version", python]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = create_command("download")
    options, _ = command.parse_args(words)
    found = {}
    with command.main_context():
        finder = command._build_package_finder(
            options, command.get_default_session(options), make_target_python(options)
        )
        for name, version in chosen.items():
            # "===": no build of somebody's own, whose version has a part behind a plus.
            best = finder.find_best_candidate(name, SpecifierSet(f"==={version}")).best_candidate
            if best is None or best.link.hash_name != "sha256":
                raise SystemExit(f"Python {python}: no file of {name} {version} with a SHA-256")
            found[name] = best.link.hash
    return found


def main() -> None:
    """Write the file."""
    known = pins()
    found: defaultdict[str, set[str]] = defaultdict(set)
    for python in PYTHONS:
        for name, digest in hashes(python, known).items():
            found[name].add(digest)
    lines = [HEAD]
    for name, version in known.items():
        marks = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(found[name]))
        lines.append(f"{name}=={version}{marks}\n")
    (ROOT / "constraints-hashes.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
