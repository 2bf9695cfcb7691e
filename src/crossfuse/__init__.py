"""crossfuse: deploy PyTorch cross-attention models, with proof.

The names here load what they need when they are first used, so that ``import crossfuse`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossfuse import runtime
    from crossfuse.bundle.store import Bundle, open_bundle
    from crossfuse.errors import BundleError, CheckError, CrossfuseError, FusionError, InputError, ParityError
    from crossfuse.export.huggingface.source import huggingface_spec
    from crossfuse.model_spec import ModelSpec
    from crossfuse.operator.torch_op import fused_attention
    from crossfuse.pipeline import build, export, profile, verify
    from crossfuse.specs import Dim, TensorSpec

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
    "TensorSpec",
    "__version__",
    "build",
    "export",
    "fused_attention",
    "huggingface_spec",
    "open_bundle",
    "profile",
    "runtime",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle.store",
    "BundleError": "errors",
    "CheckError": "errors",
    "CrossfuseError": "errors",
    "Dim": "specs",
    "FusionError": "errors",
    "InputError": "errors",
    "ModelSpec": "model_spec",
    "ParityError": "errors",
    "TensorSpec": "specs",
    "fused_attention": "operator.torch_op",
    "huggingface_spec": "export.huggingface.source",
    "open_bundle": "bundle.store",
}
_PACKAGES = ("build", "export", "profile", "runtime", "verify")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"crossfuse.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'crossfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crossfuse.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
