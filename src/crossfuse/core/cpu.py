"""What this machine's CPU can do, as far as an engine has to be told."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

__all__ = ["exact_products", "saturates"]

_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)
_EXACT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def exact_products() -> bool:
    """Whether this CPU sums products of uint8 and int8 in 32 bits: where it doesn't, or that can't
    be told, an engine has to be asked for exact ones, which are slower."""
    try:
        text: str | None = _CPU_INFO.read_text(errors="replace")
    except OSError:
        text = None
    return not saturates(platform.machine(), text)


def saturates(machine: str, cpu_info: str | None) -> bool:
    """Whether a CPU's fast products of uint8 and int8 may saturate at 16 bits, as those of x86
    without VNNI or AMX do.

    Args:
        machine: the architecture's name.
        cpu_info: what Linux says of its CPUs; None where nothing does.
    """
    if machine.lower() not in _X86:
        return False
    found = _FLAGS.findall(cpu_info or "")
    return not found or any(not _EXACT & set(flags.split()) for flags in found)
