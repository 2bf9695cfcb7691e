"""A user's own inputs among a spec's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crossfuse import ModelSpec
from crossfuse.api.examples import tensors_of, with_examples, with_tensors
from crossfuse.errors import InputError


def test_files_and_arrays_as_tensors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    assert torch.equal(tensors_of(tmp_path / "a.npz")["x"], torch.arange(3))
    assert with_tensors({"x": np.ones(2, np.float32)})["x"].dtype == torch.float32
    np.savez(tmp_path / "b.npz", x=np.array(["text"]))
    with pytest.raises(InputError, match="no tensor has"):
        tensors_of(tmp_path / "b.npz")


def test_examples_go_behind_the_others() -> None:
    spec = ModelSpec(torch.nn.ReLU(), {"input": torch.ones(2)}, {"input": {0: "n"}})
    more = with_examples(spec, [("given", {"input": np.ones(3, np.float32)})])
    assert [tuple(e["input"].shape) for e in more.examples] == [(3,)]
    assert with_examples(spec, []) is spec
    with pytest.raises(InputError, match="given"):
        with_examples(spec, [("given", {"other": np.ones(3, np.float32)})])
