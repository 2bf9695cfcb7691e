"""The user's own inputs: read from files and arrays, checked against a bundle's manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossfuse.bundle.manifest import Manifest, StageSpec
from crossfuse.bundle.store import Bundle
from crossfuse.core.tensors import CONTEXTS, TensorSpec
from crossfuse.errors import BundleError, InputError
from crossfuse.parity.given import (
    check_given,
    fan_out_of,
    read_given,
    sizes_given,
    whole_boundary,
)


def test_files_and_arrays_are_read_and_named(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=np.arange(3))
    x = np.ones(2)
    ((where, arrays),) = read_given(file)
    assert (where, arrays["x"].tolist()) == (str(file), [0, 1, 2])
    ((where, arrays),) = read_given({"x": x})
    assert where == "the inputs"
    assert arrays["x"] is x
    several = read_given([str(file), {"x": torch.ones(2)}])
    assert [where for where, _ in several] == [str(file), "inputs 2"]
    assert read_given(None) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "there are no inputs"),
        ([3], "can't be read: got int"),
        ("nothing.npz", "nothing.npz"),
    ],
)
def test_what_is_no_input(inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_given(inputs)


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


@pytest.fixture
def split(zoo_bundle: Callable[[str], Bundle]) -> Manifest:
    """A manifest of a model whose queries may be several per context."""
    stages = {
        "context": StageSpec((spec("b", CONTEXTS, "keys"),), (spec("k", CONTEXTS, "keys"),)),
        "query": StageSpec(
            (spec("a", "batch"), spec("k", CONTEXTS, "keys")), (spec("y", "batch"),)
        ),
    }
    plain = zoo_bundle("cross_modal_attention").manifest
    return replace(plain, stages=stages, shared_batch="batch", context=("b",))


def arrays(queries: int, contexts: int) -> dict[str, np.ndarray]:
    return {"a": np.ones(queries, np.float32), "b": np.ones((contexts, 3), np.float32)}


def test_sizes_and_fan_out(split: Manifest) -> None:
    inputs, outputs = whole_boundary(split)
    assert [s.name for s in (*inputs, *outputs)] == ["b", "a", "y"]
    assert sizes_given(arrays(6, 2), split) == {CONTEXTS: 2, "keys": 3, "batch": 6}
    assert fan_out_of(arrays(6, 2), split) == 3
    assert fan_out_of(arrays(2, 2), replace(split, shared_batch=None)) == 1


def test_sizes_of_multiples(split: Manifest) -> None:
    inputs = (spec("image", "batch", 3, "8*height"), spec("latent", "batch", "height"))
    manifest = replace(split, stages={"model": StageSpec(inputs, ())})
    given = {"image": np.zeros((2, 3, 40), "f4"), "latent": np.zeros((2, 5), "f4")}
    assert sizes_given(given, manifest) == {"batch": 2, "height": 5}


def test_checked_inputs_are_those_that_a_session_takes(split: Manifest) -> None:
    given = [("file", arrays(4, 2))]
    ((where, checked),) = check_given(given, split)
    assert where == "file"
    assert checked["a"] is given[0][1]["a"]
    with pytest.raises(InputError, match=r"no multiple.*\(file\): got 3 of 2"):
        check_given([("file", arrays(3, 2))], split)
    ((_, checked),) = check_given([("dlpack", arrays(4, 2) | {"a": torch.ones(4)})], split)
    assert isinstance(checked["a"], np.ndarray)
    for value in ([1.0], 1.0):
        with pytest.raises(
            InputError, match=rf"not an array \(inputs 1, a\): got {type(value).__name__}"
        ):
            check_given([("inputs 1", arrays(4, 2) | {"a": value})], split)
    wrong = arrays(4, 2) | {"a": np.ones(4)}
    with pytest.raises(InputError, match=r"wrong dtype \(file, a\): got float64"):
        check_given([("file", wrong)], split)
    with pytest.raises(InputError, match=r"names are wrong \(file\): got missing b"):
        check_given([("file", {"a": np.ones(4, np.float32)})], split)


def test_stages_of_another_version_are_refused(split: Manifest) -> None:
    with pytest.raises(BundleError, match="stages are not known.*got query"):
        whole_boundary(replace(split, stages={"query": split.stages["query"]}))
