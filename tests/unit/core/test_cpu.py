"""Whether a CPU's products of bytes are exact."""

from __future__ import annotations

import pytest

from crossfuse.core.cpu import exact_products, saturates

WITH, WITHOUT = "flags\t\t: fpu avx2 avx512_vnni\n", "flags\t\t: fpu avx2 avx512f\n"


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        ("x86_64", WITH + WITH, False),
        ("AMD64", None, True),
        ("x86_64", "", True),
        ("x86_64", WITHOUT, True),
        ("x86_64", WITH + WITHOUT, True),
        ("x86_64", "flags : sse avx_vnni", False),
        ("x86_64", "flags : amx_int8", False),
        ("x86_64", "model name : avx512_vnni\nflags : sse4_1", True),
        ("aarch64", None, False),
        ("arm64", "Features : asimddp", False),
    ],
)
def test_x86_without_vnni_saturates(machine: str, text: str | None, expected: bool) -> None:
    assert saturates(machine, text) is expected


def test_this_machine_is_told() -> None:
    assert exact_products() in (True, False)
