"""`crossfuse run`: files of inputs to files of outputs, several over one context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from crossfuse import InputError, runtime
from crossfuse.cli import app
from crossfuse.commands.run import run
from crossfuse.models.registry import zoo_spec

NAME = "cross_modal_attention"
SPLIT = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def write(folder: Path, name: str, only: tuple[str, ...], seed: int = 1) -> Path:
    spec = zoo_spec(NAME, "tiny")
    made = spec.sample(spec.example_sizes, seed)
    np.savez(folder / name, **{key: made[key].numpy() for key in only})
    return folder / name


def invoke(*arguments: Any) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["run", str(SPLIT), *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_one_file(tmp_path: Path) -> None:
    given = write(tmp_path, "in.npz", ("a", "b", "b_mask"))
    result = invoke("--input", given, "--output", tmp_path / "out.npz")
    assert result == {
        "target": "ort-cpu",
        "provider": "CPUExecutionProvider",
        "outputs": {"fused": {"dtype": "float32", "shape": [2, 7, 32]}},
        "written_to": str(tmp_path / "out.npz"),
    }
    with runtime.load(SPLIT) as session, np.load(given) as inputs:
        expected = session.run(dict(inputs))["fused"]
    with np.load(tmp_path / "out.npz") as outputs:
        np.testing.assert_array_equal(outputs["fused"], expected)


def test_several_files_over_one_context(tmp_path: Path) -> None:
    context = write(tmp_path, "context.npz", ("b", "b_mask"))
    queries = [write(tmp_path, f"{seed}.npz", ("a",), seed) for seed in (1, 2)]
    given = [part for file in queries for part in ("--input", file)]
    out = [part for file in queries for part in ("--output", file.with_suffix(".out.npz"))]
    result = invoke("--context", context, *given, *out)
    assert [one["input"] for one in result["results"]] == [str(file) for file in queries]
    whole = write(tmp_path, "whole.npz", ("a", "b", "b_mask"), 1)
    invoke("--input", whole, "--output", tmp_path / "whole.out.npz")
    with np.load(tmp_path / "1.out.npz") as one, np.load(tmp_path / "whole.out.npz") as other:
        np.testing.assert_allclose(one["fused"], other["fused"], atol=1e-6)
    with np.load(tmp_path / "1.out.npz") as one, np.load(tmp_path / "2.out.npz") as other:
        assert not np.allclose(one["fused"], other["fused"], atol=1e-2)


def test_each_input_has_its_output() -> None:
    with pytest.raises(InputError, match="each --input needs its own --output: got 2 inputs, 1"):
        run(SPLIT, [Path("a"), Path("b")], [Path("c")])
