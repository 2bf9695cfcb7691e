"""The page that follows one attention is run, block by block, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import crossfuse

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "one-attention.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def test_each_block_prints_what_stands_below_it() -> None:
    names: dict[str, object] = {"__name__": "documented"}
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 8
    for code, promised in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(PAGE), "exec"), names)
        assert printed.getvalue().strip() == promised.strip(), code


def test_the_modules_and_names_it_mentions_exist() -> None:
    text = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    package = Path(crossfuse.__file__).parent
    files = set(re.findall(r"`((?:export|targets)/[\w/]+\.py)`", text))
    assert len(files) >= 12
    source = ""
    for file in files:
        assert (package / file).is_file(), file
        source += (package / file).read_text()
    for name in re.findall(r"`([a-z]+_[a-z_]+|[A-Z][a-z]+[A-Z]\w+)`", text):
        if name in ("MatMul", "FusedAttention"):  # operators of the graph
            continue
        assert re.search(rf"\b(?:def|class) {name}\b", source), name


@pytest.mark.parametrize("name", ["match_attention", "find_softmax_chains", "axis_roles", "absorb"])
def test_each_step_of_the_matching_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text()
