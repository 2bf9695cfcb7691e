"""What a shared library asks of others, read from the file: 64-bit little-endian ELF, the parts
that this needs."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Imports", "imports_of"]

_DYNAMIC, _DYNSYM, _VERSYM, _VERNEED = 6, 11, 0x6FFFFFFF, 0x6FFFFFFE
_NEEDED = 1


@dataclass(frozen=True)
class Imports:
    """Attributes: ``needed``, the libraries that the loader looks for; ``versioned``, (library,
    version) → names of symbols; ``plain``, names without a version; ``text``, strings of the file
    that look like names, among them those it looks up later.
    """

    needed: tuple[str, ...]
    versioned: dict[tuple[str, str], tuple[str, ...]]
    plain: tuple[str, ...]
    text: frozenset[str]


def imports_of(path: Path) -> Imports:
    """Read a library's imports.

    Raises:
        ValueError: not such a file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _imports(path, data)


def _imports(path: Path, data: mmap.mmap) -> Imports:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    offset, size, count = (
        struct.unpack_from("<Q", data, 40)[0],
        *struct.unpack_from("<HH", data, 58),
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    by_type = {section[1]: section for section in sections}

    def name_at(table: int, position: int) -> str:
        start = sections[table][4] + position
        return data[start : data.find(b"\0", start)].decode()

    dynamic = by_type[_DYNAMIC]
    entries = [struct.unpack_from("<QQ", data, dynamic[4] + at) for at in range(0, dynamic[5], 16)]
    needed = tuple(name_at(dynamic[6], value) for tag, value in entries if tag == _NEEDED)

    versions: dict[int, tuple[str, str]] = {}
    if _VERNEED in by_type:
        section = by_type[_VERNEED]
        at = section[4]
        while True:
            _, parts, file, first, following = struct.unpack_from("<HHIII", data, at)
            part = at + first
            for _ in range(parts):
                _, _, index, name, step = struct.unpack_from("<IHHII", data, part)
                versions[index] = (name_at(section[6], file), name_at(section[6], name))
                part += step
            if not following:
                break
            at += following

    symbols = by_type[_DYNSYM]
    versioned: dict[tuple[str, str], list[str]] = {}
    plain = []
    for i in range(1, symbols[5] // 24):
        name, _, _, home, _, _ = struct.unpack_from("<IBBHQQ", data, symbols[4] + 24 * i)
        if home:
            continue
        index = (
            struct.unpack_from("<H", data, by_type[_VERSYM][4] + 2 * i)[0] & 0x7FFF
            if _VERSYM in by_type
            else 0
        )
        text = name_at(symbols[6], name)
        if index in versions:
            versioned.setdefault(versions[index], []).append(text)
        else:
            plain.append(text)
    names = frozenset(found.decode() for found in re.findall(rb"(?<=\0)cudnn[A-Z]\w+(?=\0)", data))
    return Imports(
        needed, {key: tuple(found) for key, found in versioned.items()}, tuple(plain), names
    )
