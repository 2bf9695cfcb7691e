"""crossfuse: deploy PyTorch cross-attention models, with proof.

The names here load what they need when they are first used, so that ``import crossfuse`` stays
light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossfuse import runtime
    from crossfuse.api.build import build
    from crossfuse.api.export import export
    from crossfuse.api.profile import profile
    from crossfuse.api.tune import tune
    from crossfuse.api.verify import verify
    from crossfuse.bundle.store import Bundle, open_bundle
    from crossfuse.core.target import Target, register_target
    from crossfuse.core.tensors import Dim, TensorSpec
    from crossfuse.errors import (
        BundleError,
        CheckError,
        CrossfuseError,
        FusionError,
        InputError,
        ParityError,
    )
    from crossfuse.export.passes.registry import register_pass
    from crossfuse.export.sources.diffusers.spec import diffusers_spec
    from crossfuse.export.sources.huggingface.input_rules import register_input_rule
    from crossfuse.export.sources.huggingface.spec import huggingface_spec
    from crossfuse.ops.torch_op import fused_attention
    from crossfuse.spec.model_spec import ModelSpec

__all__ = [
    "Bundle",
    "BundleError",
    "CheckError",
    "CrossfuseError",
    "Dim",
    "FusionError",
    "InputError",
    "ModelSpec",
    "ParityError",
    "Target",
    "TensorSpec",
    "__version__",
    "build",
    "diffusers_spec",
    "export",
    "fused_attention",
    "huggingface_spec",
    "open_bundle",
    "profile",
    "register_input_rule",
    "register_pass",
    "register_target",
    "runtime",
    "tune",
    "verify",
]

__version__ = "0.1.0"

__callables__ = {"export": "crossfuse.api.export"}
"""Packages that can be called, and the modules that hold the functions of their names."""

_HOMES = {
    "Bundle": "bundle.store",
    "BundleError": "errors",
    "CheckError": "errors",
    "CrossfuseError": "errors",
    "Dim": "core.tensors",
    "FusionError": "errors",
    "InputError": "errors",
    "ModelSpec": "spec.model_spec",
    "ParityError": "errors",
    "Target": "core.target",
    "TensorSpec": "core.tensors",
    "fused_attention": "ops.torch_op",
    "diffusers_spec": "export.sources.diffusers.spec",
    "huggingface_spec": "export.sources.huggingface.spec",
    "build": "api.build",
    "open_bundle": "bundle.store",
    "profile": "api.profile",
    "register_input_rule": "export.sources.huggingface.input_rules",
    "register_pass": "export.passes.registry",
    "register_target": "core.target",
    "tune": "api.tune",
    "verify": "api.verify",
}
_PACKAGES = ("export", "runtime")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"crossfuse.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'crossfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crossfuse.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
