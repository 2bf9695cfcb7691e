"""Options of a build: checked before any work, and digested so that a finished build is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crossfuse import InputError
from crossfuse.api.build_options import BuildOptions, check_options, options_of, request_key
from crossfuse.bundle.manifest import FileEntry
from crossfuse.bundle.store import Bundle


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("ort-cup", BuildOptions(), "unknown target.*Did you mean 'ort-cpu'"),
        ("onnx", BuildOptions("fp16"), "can't be built in this precision"),
        ("ort-cpu", BuildOptions("fp16", "bf16"), "can't have this type: got 'bf16'"),
        ("ort-cpu", BuildOptions("fp32", "fp16"), "need a target in fp16 or mixed: got fp32"),
        ("ort-cpu", BuildOptions("bf16", "fp16"), "need a target in fp16 or mixed: got bf16"),
        ("tensorrt-rtx", BuildOptions(profile_shapes=("x",)), "x"),
    ],
)
def test_what_a_target_does_not_have(target: str, options: BuildOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(target, options)


def test_the_targets_own_precision_is_filled_in() -> None:
    assert check_options("ort-cpu", BuildOptions()).precision == "fp32"
    assert check_options("ort-cpu", BuildOptions("mixed", "fp16")).io_dtype == "fp16"


def test_gpus_are_for_engines_that_are_built_without_one() -> None:
    given = BuildOptions(compute_capabilities=("8.9",), memory_limit=5)
    assert options_of("tensorrt-rtx", given) == given
    for target in ("onnx", "ort-cpu", "ort-cuda", "tensorrt"):
        assert options_of(target, given) == replace(given, compute_capabilities=())
    with pytest.raises(InputError, match="unknown target"):
        options_of("mine", given)


def test_a_build_is_known_by_all_that_it_depends_on(
    zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    manifest = zoo_bundle("cross_modal_attention").manifest
    options = BuildOptions("fp16")
    keys = [request_key(manifest, "ort-cpu", options)]
    keys.append(request_key(manifest, "onnx", options))
    for change in (
        {"precision": "bf16"},
        {"io_dtype": "fp16"},
        {"allow_unfused": True},
        {"compute_capabilities": ("8.9",)},
        {"profile_shapes": ("a=1",)},
        {"memory_limit": 1},
        {"optimization_level": 1},
        {"lean": True},
    ):
        keys.append(request_key(manifest, "ort-cpu", replace(options, **change)))
    for name in ("fused.onnx", "weights.bin", "reference.npz"):
        files = {**manifest.files, name: FileEntry(1, "0" * 64)}
        keys.append(request_key(replace(manifest, files=files), "ort-cpu", options))
    real = tmp_path / "real.npz"
    for content in (b"one", b"two"):
        real.write_bytes(content)
        keys.append(request_key(manifest, "ort-cpu", replace(options, calibrate=(str(real),))))
    assert len(set(keys)) == len(keys) == 15, "and by what its files hold"
    other = {**manifest.files, "model.onnx": FileEntry(1, "0" * 64)}
    again = request_key(replace(manifest, files=other), "ort-cpu", BuildOptions("fp16"))
    assert again == keys[0], "another target's file is none of its business"
