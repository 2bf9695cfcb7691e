"""Contexts on disk: they come back as they were, and others are refused."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from crossfuse import InputError, runtime
from crossfuse.core.tensor_file import Stored, read_tensors, write_tensors
from crossfuse.runtime.context_files import placed
from unit.runtime.toy_decoder import IMAGES, toy_session


def saved(path: Path) -> tuple[Any, Path]:
    session = toy_session()
    session.encode(image=IMAGES).save(path)
    return session, path


def test_a_context_comes_back(tmp_path: Path) -> None:
    session = toy_session()
    context = session.encode(image=IMAGES)
    context.save(str(tmp_path / "c.safetensors"))
    found = session.load_context(str(tmp_path / "c.safetensors"))
    assert (found.count, found.sizes, found.owner) == (2, context.sizes, context.owner)
    np.testing.assert_array_equal(found.tensors["bias"], context.tensors["bias"])
    np.testing.assert_array_equal(load_file(tmp_path / "c.safetensors")["bias"], IMAGES)
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["bias"][0] = 0
    ids = np.array([[1, 2], [3, 4]])
    np.testing.assert_array_equal(
        session.query(found, ids=ids)["logits"], session.query(context, ids=ids)["logits"]
    )
    first = session.query(context.select([1]), ids=ids[:1])["logits"]
    np.testing.assert_array_equal(session.query(found.select([1]), ids=ids[:1])["logits"], first)


def test_other_bundles_and_targets_are_refused_by_name(tmp_path: Path) -> None:
    _, path = saved(tmp_path / "c")
    with pytest.raises(InputError, match=r"another bundle or target .*got stub .*expected stub "):
        toy_session().load_context(path)


def test_a_bundles_contexts_are_for_any_session_of_it(tmp_path: Path) -> None:
    bundle = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
    with runtime.load(bundle) as one, runtime.load(bundle) as other:
        inputs = {
            spec.name: np.ones([2 if isinstance(n, str) else n for n in spec.shape], spec.dtype)
            for spec in one.stages["context"].inputs
        }
        context = one.encode(inputs)
        context.save(tmp_path / "c")
        found = other.load_context(tmp_path / "c")
        for name, tensor in context.tensors.items():
            np.testing.assert_array_equal(found.tensors[name], tensor)


CHANGES: dict[str, Callable[[dict[str, Stored], dict[str, str]], None]] = {
    "another tensor": lambda tensors, about: tensors.update(more=tensors["bias"]),
    "another dtype": lambda tensors, about: tensors.update(
        bias=Stored("float64", tensors["bias"].array.astype(float))
    ),
    "another rank": lambda tensors, about: tensors.update(
        bias=Stored("float32", tensors["bias"].array[0])
    ),
    "another width": lambda tensors, about: tensors.update(
        bias=Stored("float32", tensors["bias"].array[:, :3])
    ),
    "another count": lambda tensors, about: about.update(count="3"),
    "no count": lambda tensors, about: about.update(count="none"),
    "other sizes": lambda tensors, about: about.update(sizes=json.dumps({"height": 3})),
    "sizes of another kind": lambda tensors, about: about.update(sizes='{"contexts": "2"}'),
    "no sizes": lambda tensors, about: about.pop("sizes"),
    "no owner": lambda tensors, about: about.pop("owner"),
    "another version": lambda tensors, about: about.update({"crossfuse.context": "2"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_fit_no_context_are_refused(tmp_path: Path, change: str) -> None:
    session, path = saved(tmp_path / "c")
    tensors, about = read_tensors(path)
    CHANGES[change](tensors, about)
    write_tensors(path, tensors, about)
    with pytest.raises(InputError) as raised:
        session.load_context(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    session, path = saved(tmp_path / "c")
    whole = path.read_bytes()
    for wrong in (b"", whole[:50], whole[:-1], whole + b"0", whole[:-1] + b"\x01"):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=str(path)):
            session.load_context(path)
    with pytest.raises(InputError, match="no such file"):
        session.load_context(tmp_path / "none")


def test_nothing_is_pickled() -> None:
    session = toy_session()
    context = session.encode(image=IMAGES)
    for made in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match=r"context\.save.*session\.load_context"):
            made(context)
        with pytest.raises(InputError, match=r"context\.save.*session\.start"):
            made(session.start(context))


def test_on_a_device_bits_are_uploaded() -> None:
    class Memory:
        def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
            self.made = (shape, dtype)

        def write(self, bits: np.ndarray) -> Memory:
            self.bits = bits
            return self

    class Device:
        on_device = True
        empty = staticmethod(Memory)

    bits = np.arange(6, dtype=np.uint16).reshape(2, 3)
    made = placed(Stored("bfloat16", bits), Device())  # type: ignore[arg-type]
    assert made.made == ((2, 3), "bfloat16")
    assert made.bits is bits


FIRST = np.array([[3, 4], [5, 6]])


def test_tokens_in_front_of_prompts_come_back(tmp_path: Path) -> None:
    session = toy_session(first=2)
    context = session.encode(image=IMAGES, prefix_ids=FIRST)
    assert context.before is not None
    context.save(tmp_path / "c")
    found = session.load_context(tmp_path / "c")
    np.testing.assert_array_equal(found.before, FIRST)
    assert found.select([1]).before_each(2).tolist() == [[5, 6], [5, 6]]
    assert found.before_each(4).tolist() == [[3, 4], [3, 4], [5, 6], [5, 6]]
    assert toy_session().encode(image=IMAGES).before_count == 0


@pytest.mark.parametrize(
    "before",
    [None, "[[1, 2]]", "[[1], [2]]", "[[1, 2], [3]]", "[[1, -2], [3, 4]]", "{", "[" * 9999],
)
def test_other_tokens_in_front_are_refused(before: str | None, tmp_path: Path) -> None:
    session = toy_session(first=2)
    session.encode(image=IMAGES, prefix_ids=FIRST).save(tmp_path / "c")
    tensors, about = read_tensors(tmp_path / "c")
    about.pop("before")
    write_tensors(tmp_path / "c", tensors, about | ({} if before is None else {"before": before}))
    with pytest.raises(InputError, match="front of"):
        session.load_context(tmp_path / "c")
