"""A processor's files lead nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossfuse.core.processor_files import has_processor, require_own_processor
from crossfuse.errors import InputError


def write(folder: Path, name: str, settings: Any) -> None:
    (folder / name).write_text(json.dumps(settings))


def test_whether_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {})
    assert not has_processor(tmp_path)
    write(tmp_path, "preprocessor_config.json", {})
    assert has_processor(tmp_path)


def test_plain_files_and_plain_names_pass(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "vocab.txt").write_text("a\nb\n")
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "vocab_file": "vocab.txt",
            "special_tokens_map_file": "/root/x.json",
            "tokenizer_file": None,
        },
    )
    require_own_processor(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_file": "/etc/passwd"},
        {"nested": {"merges_file": "../merges.txt"}},
        {"tokenizer_file": "C:\\tokenizer.json"},
        {"auto_map": {"AutoProcessor": "someone/else--processing.Mine"}},
        {"audio_tokenizer": {"audio_tokenizer_name_or_path": "someone/else"}},
    ],
)
def test_settings_that_lead_elsewhere_are_refused(tmp_path: Path, settings: Any) -> None:
    write(tmp_path, "processor_config.json", settings)
    with pytest.raises(InputError, match="processor_config"):
        require_own_processor(tmp_path)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jinja"
    outside.write_text("{{ messages }}")
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    write(folder, "tokenizer_config.json", {})
    (folder / "additional_chat_templates" / "tool.jinja").symlink_to(outside)
    with pytest.raises(InputError, match="leads out"):
        require_own_processor(folder)
