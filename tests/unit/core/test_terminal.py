"""What files and strangers write is shown on a terminal and in a page, and has no effect there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossfuse
from crossfuse.cli import main
from crossfuse.commands.output import Output
from crossfuse.core.npz import save_arrays
from crossfuse.core.terminal import shown
from crossfuse.errors import InputError
from crossfuse.profiling.measure.sampling import Plan
from crossfuse.profiling.report.page import render

ATTACKS = {
    "colour": "a\x1b[31mb",
    "title": "a\x1b]0;owned\x07b",
    "clear": "a\x1b[2J\x1b[Hb",
    "eight bits": "a\x9b31mb",
    "bell and backspace": "a\x07\x08\x7fb",
    "new line": "a\nerror: forged",
    "carriage return": "a\rforged",
    "other lines": "a\x0b\x0c\x85\u2028\u2029b",
    "override": "a\u202eb\u202c",
    "isolate": "a\u2066b\u2069",
    "marks": "a\u200e\u200f\u061cb",
    "hidden": "a\u200b\u2060\ufeff\u00adb",
    "tags": "a\U000e0041b",
    "markup": "a[red]b[/red]",
    "escaped markup": "a\\[bold]b\\\\[/]",
    "link": "a[link=https://example.org]b[/link]",
    "action": "a[@click=app.bell]b[/]",
    "emoji": "a:skull:b",
    "html": "a<script>b</script>&amp;",
}
ALL = " ".join(ATTACKS.values())
SURROGATE = "a\ud800b"


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_shown_text_has_no_effect_and_loses_nothing(text: str) -> None:
    got = shown(text)
    assert got.isprintable()
    if text.isprintable():
        assert got == text
    assert (
        re.sub(
            r"\\(x..|u....|U........|[nrt])", lambda m: m[0].encode().decode("unicode_escape"), got
        )
        == text
        or "\\[" in text
    )


def test_text_that_people_write_is_left_alone() -> None:
    for text in (
        "",
        "cross.attn[0]",
        "café",
        "日本語",
        "Ελλάδα",
        "👍",
        "a b",
        "x²·y ≤ ∞",
        "C:\\temp",
    ):
        assert shown(text) == text
    assert shown(SURROGATE) == "a\\ud800b"
    assert shown(3) == "3"
    assert shown("a\u00a0b") == "a\\xa0b"


def harmless(text: str) -> bool:
    """No character acts on a terminal, and no line is forged."""
    return all(line.isprintable() for line in text.split("\n")) and not re.search(
        r"(?m)^\W*(error: )?forged", text
    )


@pytest.mark.parametrize("text", [*ATTACKS.values(), SURROGATE], ids=[*ATTACKS, "surrogate"])
def test_every_way_to_print(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    output = Output(as_json=False)
    output.line(text)
    output.error(text)
    output.warning(text)
    output.heading(text, " and ", text)
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    output.console.print(table)
    with output.progress() as step:
        step(text)
    got = capsys.readouterr()
    assert harmless(got.out)
    assert harmless(got.err)
    # Each appears as written, but where a line of a table is broken.
    assert got.out.count(shown(text)) >= 4
    assert got.err.count(shown(text)) >= 3


def test_a_spinner_shows_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = Output(as_json=False)
    assert output.errors.is_terminal
    with output.progress() as step:
        step("x\x1b]0;owned\x07[red]y")
    assert "\x1b]0;" not in capsys.readouterr().err


def spoil(value: Any, path: tuple[str, ...] = ()) -> Any:
    """A manifest with the attacks in every text that is free to be anything."""
    fixed = {
        "dtype",
        "kind",
        "sha256",
        "shared_batch",
        "fused_graph",
        "reference",
        "size",
        "files",
        "context",
        "compute_capabilities",
    }
    if isinstance(value, dict):
        return {
            key: value[key] if key in fixed else spoil(value[key], (*path, key)) for key in value
        }
    if isinstance(value, list):
        return [spoil(item, path) for item in value]
    in_spec = (
        path[:1] == ("stages",)
        or path[:1] == ("dims",)
        or (path[:1] == ("targets",) and path[2:3] in (("stages",), ("precision",)))
    )
    return value + ALL if isinstance(value, str) and not in_spec else value


@pytest.fixture
def hostile(bundle_copy: Path) -> Path:
    """A bundle that opens and runs, whose every other text is an attack."""
    file = bundle_copy / "manifest.json"
    manifest = json.loads(file.read_text())
    changed = spoil(manifest)
    changed["targets"]["ort-cpu"]["kept"] = {ALL: ALL}
    changed["targets"][f"x{ALL}"] = changed["targets"]["ort-cpu"] | {
        "precision": f"fp16{ALL}",
        "engine": {
            "library": ALL,
            "version": ALL,
            "compute_capabilities": [ALL],
            "profiles": [{ALL: [1, 2, 3]}],
            "lean": False,
            "request": "",
        },
    }
    changed["ledger"].append(
        changed["ledger"][0]
        | {"site": ALL, "fused": {}, "captured": None, "reasons": {"ort-cpu": ALL}}
    )
    file.write_text(json.dumps(changed))
    return bundle_copy


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    got = capsys.readouterr()
    return got.out + got.err


def test_commands_on_a_hostile_bundle(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = dict(np.load(hostile / "reference.npz"))
    named = {
        key.split("/", 2)[2]: array for key, array in inputs.items() if key.startswith("0/inputs/")
    }
    save_arrays(tmp_path / "good.npz", named)
    save_arrays(tmp_path / "bad.npz", named | {ALL.replace("\0", ""): np.zeros(1)})
    odd = tmp_path / "a\x1b[31m\u202e\nerror: forged[red].npz"
    for texts in (
        said(capsys, "inspect", hostile),
        said(capsys, "verify", hostile, "--target", "ort-cpu"),
        said(capsys, "verify", hostile, "--target", ALL),
        said(capsys, "verify", hostile, "--target", f"x{ALL}"),
        said(capsys, "run", hostile, "--target", "ort-cpu", "--input", tmp_path / "good.npz"),
        said(capsys, "run", hostile, "--target", "ort-cpu", "--input", tmp_path / "bad.npz"),
        said(capsys, "run", hostile, "--input", odd),
        said(capsys, "inspect", odd),
        said(capsys, "package", hostile, "-o", tmp_path / "models"),
        said(capsys, "export", ALL, "-o", tmp_path / "b"),
        said(capsys, "profile", hostile, "--against", "eager"),
        said(capsys, "profile", hostile, "--against", ALL),
        said(capsys, "profile", hostile, "--sweep", f"{ALL}=1"),
    ):
        assert texts
        assert harmless(texts), texts


def test_json_keeps_the_exact_text(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "inspect", hostile, "--json")
    assert text.isascii()
    assert harmless(text)
    assert json.loads(text) == json.loads((hostile / "manifest.json").read_text())


def test_pages_show_too(hostile: Path) -> None:
    report = crossfuse.profile(
        hostile, "ort-cpu", plan=Plan(rounds=3, seconds=0.001), cold_starts=0, trace=False
    )
    page = render(report)
    assert harmless(page)
    assert "<script" not in page
    assert "\\u202e" in page
    assert "&lt;script&gt;" in page


def test_a_models_readme_names_nothing_that_acts(hostile: Path, tmp_path: Path) -> None:
    from crossfuse.serve.triton.repository import write_repository

    with pytest.raises(InputError):
        crossfuse.runtime.load(hostile, f"x{ALL}")
    write_repository(hostile, tmp_path / "models")
    for file in (tmp_path / "models").rglob("*"):
        if file.suffix in (".md", ".pbtxt", ".py"):
            assert harmless(file.read_text()), file
