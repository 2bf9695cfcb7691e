"""What every model of ``transformers`` is set to for an export: no caches, nothing but results
among its outputs, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["set_for_export"]

_SETTINGS: Mapping[str, bool] = {
    "use_cache": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "return_loss": False,
    "return_dict": True,
}


def set_for_export(model: nn.Module) -> None:
    """Set the configurations of a model and its parts, in place, where they have the setting."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for config in configs.values():
        _set(config)


def _set(config: Any) -> None:
    for name, value in _SETTINGS.items():
        if isinstance(getattr(config, name, None), bool) and getattr(config, name) is not value:
            setattr(config, name, value)
