"""The HTML report, in Chromium: everything is there, nothing overlaps, nothing is fetched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse.profiling.explain.attribution import NodeTime, StageTimes
from crossfuse.profiling.explain.machine import Limits
from crossfuse.profiling.measure.coldstart import ColdStart
from crossfuse.profiling.measure.generation import GenerationTimes
from crossfuse.profiling.measure.load import LoadResult
from crossfuse.profiling.measure.sampling import Samples
from crossfuse.profiling.measure.statistics import paired_ratio
from crossfuse.profiling.report.figures import density, linear_axis, log_axis, short
from crossfuse.profiling.report.page import render
from crossfuse.profiling.report.report import LatencyReport, Row
from crossfuse.profiling.report.summary_text import milliseconds, sentences

FIGURES = (
    "distributions",
    "baselines",
    "sweep",
    "modules",
    "roofline",
    "load",
    "generation",
    "cold",
    "ledger",
    "parity",
    "environment",
)


def a_report() -> LatencyReport:
    """Every part of a report, from made-up numbers: three batches, five baselines, two stages."""
    rng = np.random.default_rng(0)

    def samples(milliseconds: float) -> Samples:
        return Samples(
            tuple(
                tuple(int(1e6 * v) for v in milliseconds * rng.lognormal(0, 0.04, 9))
                for _ in range(8)
            ),
            (2,),
        )

    rows = []
    factors = {"eager": 1.7, "compile": 1.3, "onnx": 1.02, "openvino": 1.04}
    for batch in (1, 4, 16):
        sizes = {"batch": batch, "image_tokens": 257, "text": 20, "contexts": batch}
        own = samples(90.0 * batch**0.9)
        rows.append(Row("crossfuse", sizes, own, reference_error=4e-4))
        rows += [
            Row(f"crossfuse {stage}", sizes, samples(share * 90 * batch**0.9))
            for stage, share in (("encode", 0.35), ("query", 0.65))
        ]
        for name, factor in factors.items():
            taken = samples(90.0 * factor * batch**0.9)
            ratio = paired_ratio(taken.rounds, own.rounds)
            truth = 3e-3 if name == "openvino" else 3e-7
            rows.append(Row(name, sizes, taken, ratio=ratio, error=3e-7, reference_error=truth))
        rows.append(Row("hf", sizes, failure="not a model of transformers"))
    long = "encoder.layers.{}.cross_attention_with_a_long_name.attention.projection"
    nodes = [
        NodeTime(
            f"n{i}",
            op,
            kind,
            long.format(i) if i % 2 else "",
            long.format(i) if kind == "attention" else None,
            s,
            f,
            b,
        )
        for i, (op, kind, s, f, b) in enumerate(
            [
                ("MatMul", "GEMM", 0.03, int(5e9), int(2e7)),
                ("MatMul", "GEMM", 0.02, int(3e9), int(3e8)),
                ("Attention", "attention", 0.004, int(4e8), int(1e7)),
                ("Attention", "attention", 0.003, int(3e8), int(1e7)),
                ("LayerNormalization", "norm", 0.002, 0, int(1e6)),
                ("Transpose", "copy", 0.001, 0, int(1e6)),
            ]
        )
    ]
    stages = (
        StageTimes("context", 0.031, tuple(nodes[:1]), 20),
        StageTimes("query", 0.031, tuple(nodes[1:]), 20),
    )
    ledger = [
        {
            "site": long.format(i),
            "kind": "cross",
            "captured": "sdpa",
            "num_heads": 12,
            "head_size": 64,
            "fused": {"ort-cpu": "Attention"},
        }
        for i in range(4)
    ]
    outputs = {
        "logits": {
            "max_abs": 1e-6,
            "max_rel": 1e-6,
            "tolerance": 1e-5,
            "tolerance_from": "absolute floor",
        }
    }
    return LatencyReport(
        "bundle",
        "BLIP-2 <script>alert(1)</script> Q-Former",
        "ort-cpu",
        "CPUExecutionProvider",
        "fp32",
        tuple(rows),
        stages,
        Limits(2.2e11, 5.7e10, (256, 768, 3072)),
        (
            LoadResult("closed", 4, tuple([10**8] * 50), 11.0),
            LoadResult("open", 8, tuple([2 * 10**8] * 50), 7.9),
        ),
        ColdStart(0.03, 0.18, 1.9, 0.12, 2.23, 900_000_000, 5),
        0.6,
        None,
        tuple(ledger),
        {
            "passed": True,
            "reference_dtype": "float64",
            "points": [{}] * 8,
            "executed_on": "CPU",
            "outputs": outputs,
        },
        {"processor": "A processor", "cores": 2, "load_average": [0.1, 0.2, 0.3]},
        "crossfuse profile bundle --against eager,compile,onnx,openvino,hf --sweep batch=1,4,16 "
        "--html report.html",
        (
            GenerationTimes(1, 4, 8, (20_000_000,) * 3, (3_000_000,) * 21, 250.0),
            GenerationTimes(8, 4, 8, (40_000_000,) * 9, (5_000_000,) * 63, 900.0),
        ),
    )


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
        quiet = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        chromium = playwright.chromium.launch(executable_path=found, args=quiet)
        yield chromium
        chromium.close()


OVERLAPS = """() => {
  const main = document.querySelector('main');
  const found = [], walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.textContent.trim() || !node.parentElement.checkVisibility()) continue;
    const range = document.createRange(); range.selectNodeContents(node);
    for (const r of range.getClientRects())
      if (r.width > 1 && r.height > 1) {
        const text = node.textContent.trim().slice(0, 40);
        found.push([text, r.left, r.top, r.right, r.bottom]);
      }
  }
  const clashes = [];
  for (let i = 0; i < found.length; i++) for (let j = i + 1; j < found.length; j++) {
    const [a, l, t, r, b] = found[i], [c, l2, t2, r2, b2] = found[j];
    const width = Math.min(r, r2) - Math.max(l, l2), height = Math.min(b, b2) - Math.max(t, t2);
    if (width > 1 && height > 0.35 * Math.min(b - t, b2 - t2)) clashes.push([a, c, width, height]);
  }
  return clashes;
}"""


TRADEOFFS = """() => [...document.querySelectorAll('h3')]
  .filter(h => h.textContent.startsWith('speed and error'))
  .map(h => {
    let chart = h; while (!chart.classList.contains('chart')) chart = chart.nextElementSibling;
    const area = chart.querySelector('.area').getBoundingClientRect();
    return [...chart.querySelectorAll('.dot')].map(d => d.getBoundingClientRect()).filter(
      d => d.left >= area.left - d.width && d.right <= area.right + d.width &&
           d.top >= area.top - d.height && d.bottom <= area.bottom + d.height).length;
  })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(a_report()), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    fetched: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(file.as_uri())
    assert said == []
    assert [url for url in fetched if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("[...document.querySelectorAll('[data-figure]')].map(s => s.id)") == list(
        FIGURES
    )
    heights = page.evaluate(
        "[...document.querySelectorAll('[data-figure]')].map(s => s.getBoundingClientRect().height)"
    )
    assert min(heights) > 60
    assert page.evaluate("document.documentElement.scrollWidth") == width, (
        "the page doesn't scroll sideways"
    )
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(TRADEOFFS) == [5, 5, 5], "speed and error of all that have both"
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate(OVERLAPS) == []
    painted = (
        "[...document.querySelectorAll('svg path')].map(p => p.getBBox()).filter(b => "
        "b.width > 0).length"
    )
    assert page.evaluate(painted) >= 3 * 7 + 2 * 7 + 2, "curves have an extent"
    colors = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    context.close()


def test_nothing_is_fetched_and_names_are_escaped() -> None:
    page = render(a_report())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?://|src=|@import|url\(", page)


def test_parts_that_were_not_measured_are_left_out() -> None:
    whole = a_report()
    rows = tuple(row for row in whole.rows if row.name == "crossfuse" and row.sizes["batch"] == 1)
    bare = replace(
        whole,
        rows=rows,
        stages=(),
        limits=None,
        load=(),
        generation=(),
        cold_start=None,
        break_even=None,
        ledger=(),
        parity=None,
    )
    page = render(bare)
    assert re.findall(r'<section id="(\w+)"', page) == ["distributions", "environment"]


def test_words_don_t_claim_what_the_noise_hides() -> None:
    text = " ".join(sentences(a_report()))
    assert "eager takes 1.6" in text or "eager takes 1.7" in text
    ratio = paired_ratio([[100], [110], [90], [105]], [[100], [100], [100], [100]])
    noisy = replace(a_report(), rows=(a_report().rows[0], replace(a_report().rows[3], ratio=ratio)))
    assert "eager takes as long within the noise" in " ".join(sentences(noisy))


def test_numbers_and_axes() -> None:
    assert [short(v) for v in (0, 0.0301, 93.14, 1234.5, 250_000, 0.0004)] == [
        "0",
        "0.0301",
        "93.1",
        "1234",
        "2.5e+05",
        "0.0004",
    ]
    assert [milliseconds(v) for v in (2.5e-5, 0.0931, 12.5)] == ["25 µs", "93.1 ms", "12.5 s"]
    for axis in (
        linear_axis(88, 131),
        linear_axis(0.9, 1.1),
        log_axis(1, 300),
        log_axis(0.95, 1.2),
        log_axis(7, 7),
    ):
        places = [axis.at(value) for value, _ in axis.ticks]
        assert 2 <= len(places) <= 7
        assert places == sorted(places)
        assert min(b - a for a, b in pairwise(places)) > 8, "labels have room"
    curve = density([10.0] * 30, linear_axis(5, 15))
    assert curve.startswith("M")
    assert curve.endswith("Z")
