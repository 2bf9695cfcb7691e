"""The rules by which a form's kernel is told; `tests/gpu_rehearsal` asks the provider itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crossfuse.targets.cuda.kernels import Form, kernel_text, runs

HALF = Form(half=True, size=64, value_size=64)
FULL = replace(HALF, half=False)


@pytest.mark.parametrize(
    ("form", "queries", "keys", "kernel"),
    [
        (HALF, 8, 12, "flash"),
        (FULL, 8, 12, "efficient"),
        (replace(HALF, masked=True), 8, 12, "efficient"),
        (replace(HALF, masked=True), 8, 13, "math"),
        (replace(HALF, causal=True), 8, 8, "flash"),
        (replace(HALF, causal=True), 8, 9, "efficient"),
        (replace(HALF, value_size=128), 8, 8, "efficient"),
        (replace(HALF, size=512, value_size=512), 8, 8, "efficient"),
        (replace(HALF, size=256, value_size=256), 8, 8, "flash"),
        (replace(HALF, size=44), 8, 8, "math"),
        (replace(HALF, value_size=44), 8, 8, "math"),
        (replace(HALF, grouped=True), 8, 8, "flash"),
        (replace(HALF, grouped=True, value_size=128), 8, 8, "math"),
        (replace(FULL, grouped=True), 8, 8, "math"),
        (replace(HALF, size=None), 8, 8, "math"),
    ],
)
def test_kernels(form: Form, queries: int, keys: int, kernel: str) -> None:
    assert runs(form, queries, keys) == kernel


@pytest.mark.parametrize(
    ("form", "padded", "text"),
    [
        (HALF, True, "flash"),
        (replace(HALF, masked=True), True, "efficient"),
        (
            replace(HALF, masked=True),
            False,
            "efficient; math where the number of keys is no multiple of 4",
        ),
        (
            replace(HALF, causal=True),
            True,
            "flash; efficient where queries and keys differ in number",
        ),
        (replace(HALF, causal=True, square=True), True, "flash"),
        (replace(HALF, size=44), True, None),
        (replace(FULL, grouped=True), True, None),
    ],
)
def test_texts_for_the_ledger(form: Form, padded: bool, text: str | None) -> None:
    assert kernel_text(form, padded=padded) == text
