"""Builds engines in a process of its own: ``python -m crossfuse.targets.tensorrt.worker
REQUEST.json RESULT.json``.

A builder that crashes, leaks or prints takes nothing else with it, and Polygraphy, which chooses
between TensorRT and TensorRT-RTX once per process by an environment variable, gets a process for
the choice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from crossfuse.core.processes import end_with_parent

__all__ = ["main"]


def main(request_file: str, result_file: str) -> None:
    """Build every engine of a request; what comes of each goes to the result file."""
    from crossfuse.targets.tensorrt.builder import build, library_version

    request = json.loads(Path(request_file).read_text())
    results = [build(job, request["options"]) for job in request["engines"]]
    Path(result_file).write_text(json.dumps({"version": library_version(), "engines": results}))


if __name__ == "__main__":
    end_with_parent()
    main(sys.argv[1], sys.argv[2])
