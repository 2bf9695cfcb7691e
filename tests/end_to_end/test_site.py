"""The documentation's site: built strictly, with nothing from a network, and looked at."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from documented import ROOT

LOOKED_AT = (
    "index.html",
    "start/first-export.html",
    "guides/verify.html",
    "guides/gpu.html",
    "reference/cli.html",
    "reference/python.html",
    "reference/results.html",
)


@pytest.fixture(scope="module")
def site(shared_folder: Callable[..., Path]) -> Path:
    """The site, as ``make docs`` builds it: a warning is an error."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (pip install 'crossfuse[docs]')")
    return shared_folder("site", build)


def build(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """A server of the site, on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CROSSFUSE_CHROMIUM") or next(
        filter(None, map(shutil.which, names)), None
    )
    if found is None:
        pytest.skip("no Chromium on this machine (or set CROSSFUSE_CHROMIUM)")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install 'crossfuse[dev]')"
    )
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def test_every_page_is_there_and_names_no_other_host(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 25
    for page in pages:
        text = (site / page).with_suffix(".html").read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*?\bsrc=\"?([^\">\s]+)", text)
        loaded += re.findall(r"<link[^>]*?\bhref=\"?([^\">\s]+)", text)
        assert not [one for one in loaded if one.startswith(("http:", "https:", "//"))], page
    assert not (site / "hooks").exists()


def test_no_markdown_is_left_as_text(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 25
    for page in pages:
        article = re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)
        assert article, page
        prose = re.sub(r"<(pre|code)\b.*?</\1>|<[^>]*>", " ", article[0], flags=re.DOTALL)
        assert not re.search(r"\]\(|\*\*|:::|<!--|^\|", prose, re.MULTILINE), page


def test_the_reference_of_commands_has_every_option(site: Path) -> None:
    from typer.main import get_command

    from crossfuse.cli import app

    text = (site / "reference" / "cli.html").read_text()
    for name, command in get_command(app).commands.items():
        assert f">crossfuse {name}<" in text
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                if option.startswith("--") and option != "--help":
                    assert re.search(rf"[ >]{option}[ <,]", text), f"{name} {option}"
    assert "Default: <code>published</code>" in text
    assert "made: commands" not in text


def test_the_reference_of_the_manifest_has_every_field(site: Path) -> None:
    import json

    schema = json.loads((ROOT / "src/crossfuse/bundle/manifest.schema.json").read_text())
    text = (site / "reference" / "manifest.html").read_text()
    definitions = [one.get("properties", {}) for one in schema["$defs"].values()]
    fields = {name for properties in (schema["properties"], *definitions) for name in properties}
    assert len(fields) > 40
    for name in fields:
        assert f"<code>{name}</code>" in text


def test_docstrings_are_shown_without_roles(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text()
    assert 'id="crossfuse.ModelSpec"' in text
    assert ":class:" not in text


@pytest.mark.parametrize(
    ("page", "width"),
    [
        *((page, 390) for page in LOOKED_AT),
        (LOOKED_AT[0], 1440),
        # What fits on a telephone has more room here.
        *(pytest.param(page, 1440, marks=pytest.mark.slow) for page in LOOKED_AT[1:]),
    ],
)
def test_pages_fit_and_ask_nobody_else(browser: Any, address: str, page: str, width: int) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    view = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    view.on("request", lambda request: asked.append(request.url))
    view.on("pageerror", lambda error: wrong.append(str(error)))
    view.goto(address + page, wait_until="load")
    assert view.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert view.locator("h1").count() == 1
    assert not [url for url in asked if not url.startswith(address)]
    assert not wrong
    view.context.close()


def test_the_search_finds(browser: Any, address: str) -> None:
    view = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    view.goto(address + "index.html", wait_until="load")
    view.locator("input[name=query]").click()
    view.locator("input[name=query]").press_sequentially("rendezvous")
    view.locator(".md-search-result__link").first.wait_for(timeout=20_000)
    assert "serving.html" in view.locator(".md-search-result__link").first.get_attribute("href")
    view.context.close()
