"""What models are set to for an export."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from crossfuse.export.sources.huggingface.export_settings import set_for_export


def part(**settings: Any) -> nn.Module:
    made = nn.Module()
    made.config = SimpleNamespace(**settings)
    return made


def test_every_part_is_set_where_it_has_the_setting() -> None:
    model = part(use_cache=True, output_attentions=True, return_dict=False, hidden_size=3)
    model.inner = part(use_cache=True, output_hidden_states=True, output_router_logits=None)
    set_for_export(model)
    assert vars(model.config) == {
        "use_cache": False,
        "output_attentions": False,
        "return_dict": True,
        "hidden_size": 3,
    }
    assert vars(model.inner.config) == {
        "use_cache": False,
        "output_hidden_states": False,
        "output_router_logits": None,
    }
    set_for_export(nn.Linear(2, 2))  # without a configuration, nothing happens
