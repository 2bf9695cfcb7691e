"""Requests that nobody should send: those of an honest client, changed where the protocol has its
parts (JSON, tensors' bytes, headers, paths, the frames of HTTP itself)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from campaigns.operations import damaged, mutated
from crossfuse.serve.open_inference import BINARY_HEADER, DATATYPES

Arrays = dict[str, np.ndarray]
Headers = list[tuple[bytes, bytes]]
NUMBERS = (
    "0", "-1", "+1", "1e3", "0x10", " 7", "²", "٣", "1" * 40, "NaN", "", "1,2", "1 2",
    "999999999999", "9223372036854775808", "01",
)  # fmt: skip
STRINGS = (
    "", "\x00", "é" * 40, "\ud800", "x" * 2000, "../../etc/passwd", "\x1b[2J", "a\nb", "%s%n",
    "null", "context:attention.key", "self", "__class__", "b_mask",
)  # fmt: skip
LITERALS = (
    "NaN", "Infinity", "1e999", "-0", "1" * 400, "[" * 3000, "{", '"\\ud800"', "true", "1.5",
    "[[1],[2,3]]", "null",
)  # fmt: skip
PATHS = (
    "/", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/",
    "/v2/models/m/versions/1", "/v2/models/m/versions/2/infer", "/v2/models/n/infer",
    "/v2/models/%00/infer", "/v2/models/%ff%fe/infer", "/v2/models/m/infer/",
    "//v2//models//m//infer", "/v2/models/../m/infer", "/v2/models/m/infer?x=%zz&y", "/-/healthz",
    "/-/routes", "/-/crossfuse/stop", "/" + "a" * 3000, "/v2/models/" + "%e2%82%ac" * 50, "*", "http://else.where/v2/models/m/infer",
    "/v2/models/m/ready", "/metrics", "/v2/models/m;x/infer", "/v2/repository/index",
)  # fmt: skip
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post", "X", "")
HEADERS: Headers = [
    (b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"identity, br"),
    (b"Content-Type", b"\xff\xfe"),
    (b"Content-Type", b"multipart/form-data; boundary=x"), (b"Host", b"[::1"), (b"Host", b"\xff"),
    (b"Accept", b"x" * 5000), (b"X-Request-ID", b"\xff\xfe"), (b"X-Request-ID", b"\x1b[2J" * 50),
    (b"serve_multiplexed_model_id", b"\xff"), (b"serve-multiplexed-model-id", b"somebody"),
    (b"X-Session-ID", b"\xc3"), (b"X-Request-Timeout-Seconds", b"0.000001"),
    (b"X-Request-Timeout-Seconds", b"\xe9"), (b"X-Request-Disconnect-Disabled", b"?1"),
    (b"Expect", b"100-continue"), (b"Expect", b"nothing"), (b"Connection", b"close"),
    (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Upgrade", b"h2c"),
    (b"X-Crossfuse-Key", b"guess"), (b"X-Crossfuse-Key", b"\xff"), (b"Cookie", b"a=" + b"b" * 4000),
    (b"Transfer-Encoding", b"gzip, chunked"), (b"Origin", b"null"), (b"Range", b"bytes=0-"),
    (b"traceparent", b"00-\xff"), (b"X-Forwarded-For", b"127.0.0.1, \xff"),
    (b"Authorization", b"Bearer \xe9"),
]  # fmt: skip
LARGE = {"shape": (2**31, 2**63 - 1, 2**64, 10**30), "binary_data_size": (0, -4, 2**40, 10**30)}


def body_of(arrays: Arrays, binary: bool, **parameters: Any) -> tuple[bytes, int | None]:
    """An honest body, and how many bytes of it are JSON where tensors follow."""
    described, chunks = [], []
    for name, array in arrays.items():
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": DATATYPES[array.dtype.name],
        }
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            chunks.append(array.tobytes())
        else:
            entry["data"] = array.reshape(-1).tolist()
        described.append(entry)
    top: dict[str, Any] = {"inputs": described}
    if parameters:
        top["parameters"] = parameters
    text = json.dumps(top).encode()
    return text + b"".join(chunks), len(text) if binary else None


def framed(
    body: bytes,
    json_length: int | None = None,
    *,
    method: str = "POST",
    path: str = "/v2/models/m/infer",
    headers: Headers | None = None,
) -> bytes:
    """A request as it goes over the wire, its length told."""
    lines = [f"{method} {path} HTTP/1.1".encode("utf-8", "surrogatepass"), b"Host: 127.0.0.1"]
    lines.append(b"Content-Length: %d" % len(body))
    if json_length is not None:
        lines.append(f"{BINARY_HEADER}: {json_length}".encode())
    lines += [name + b": " + value for name, value in headers or []]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Fuzzer:
    """Makes requests.

    Args:
        arrays: of an honest request.
        chance: what decides.
    """

    def __init__(self, arrays: Arrays, chance: random.Random) -> None:
        self.arrays = arrays
        self.chance = chance
        self.kinds: dict[str, Callable[[], bytes]] = {
            "json": self.json,
            "text": self.text,
            "bytes": self.bytes,
            "tensors": self.tensors,
            "shapes": self.shapes,
            "names": self.names,
            "headers": self.headers,
            "numbers": self.numbers,
            "paths": self.paths,
            "chunks": self.chunks,
            "frames": self.frames,
        }

    def make(self) -> tuple[str, bytes]:
        """A kind, and a request of it."""
        kind = self.chance.choice(list(self.kinds))
        return kind, self.kinds[kind]()

    def json(self) -> bytes:
        """A value of the JSON is of another kind."""
        binary = self.chance.random() < 0.3
        body, length = body_of(self.arrays, binary, context_id="cat")
        text = mutated(body[:length], self.chance)
        return framed(text + body[len(body) if length is None else length :], length and len(text))

    def text(self) -> bytes:
        """The JSON has a literal that JSON may not have, or that no number holds."""
        text, _ = body_of(self.arrays, False)
        numbers = [at for at, byte in enumerate(text) if byte in b"0123456789{["]
        at = self.chance.choice(numbers)
        made = text[:at] + self.chance.choice(LITERALS).encode() + text[at + 1 :]
        return framed(made)

    def bytes(self) -> bytes:
        """Bytes of the body are changed, cut off, doubled or moved."""
        body, length = body_of(self.arrays, self.chance.random() < 0.5)
        return framed(damaged(body, self.chance), length)

    def tensors(self) -> bytes:
        """Tensors whose bytes are any."""
        arrays = dict(self.arrays)
        name = self.chance.choice(list(arrays))
        array = arrays[name]
        arrays[name] = np.frombuffer(self.chance.randbytes(array.nbytes), array.dtype).reshape(
            array.shape
        )
        return framed(*body_of(arrays, True))

    def shapes(self) -> bytes:
        """A shape or a size that does not fit, or fits nothing."""
        body, length = body_of(self.arrays, True)
        top = json.loads(body[:length])
        entry = self.chance.choice(top["inputs"])
        if self.chance.random() < 0.5:
            size = self.chance.choice((*LARGE["shape"], 0, 0, -1, 3, 65, 5000))
            entry["shape"][self.chance.randrange(len(entry["shape"]))] = size
        else:
            entry["parameters"]["binary_data_size"] = self.chance.choice(LARGE["binary_data_size"])
        text = json.dumps(top).encode()
        return framed(text + body[length:], len(text))

    def names(self) -> bytes:
        """Names of inputs, outputs, contexts and requests."""
        body, length = body_of(self.arrays, True, context_id="cat")
        top = json.loads(body[:length])
        name = self.chance.choice(STRINGS)
        where = self.chance.randrange(4)
        if where == 0:
            self.chance.choice(top["inputs"])["name"] = name
        elif where == 1:
            top["outputs"] = [{"name": name}]
        elif where == 2:
            top["parameters"]["context_id"] = name
        else:
            top["id"] = name
        if where == 2 and self.chance.random() < 0.5:
            top["inputs"] = top["inputs"][:1]
            body = body[:length] + self.arrays[top["inputs"][0]["name"]].tobytes()
        text = json.dumps(top).encode()
        return framed(text + body[length:], len(text))

    def headers(self) -> bytes:
        """Headers that mean something to somebody on the way."""
        more = self.chance.sample(HEADERS, self.chance.randint(1, 4))
        if self.chance.random() < 0.05:
            more = [(b"X-%d" % n, b"y" * 50) for n in range(400)]
        return framed(*body_of(self.arrays, True), headers=more)

    def numbers(self) -> bytes:
        """Lengths in headers."""
        body, length = body_of(self.arrays, True)
        number = self.chance.choice(NUMBERS).encode()
        if self.chance.random() < 0.5:
            return framed(body, headers=[(BINARY_HEADER.encode(), number)])
        whole = framed(body, length)
        return whole.replace(b"Content-Length: %d" % len(body), b"Content-Length: " + number, 1)

    def paths(self) -> bytes:
        """Paths, methods and versions of HTTP."""
        body, length = body_of(self.arrays, True)
        method = "POST" if self.chance.random() < 0.5 else self.chance.choice(METHODS)
        whole = framed(body, length, method=method, path=self.chance.choice(PATHS))
        if self.chance.random() < 0.2:
            version = self.chance.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"RTSP/1.0"))
            whole = whole.replace(b"HTTP/1.1", version, 1)
        return whole

    def chunks(self) -> bytes:
        """Bodies in chunks, some of them wrong."""
        body, length = body_of(self.arrays, True)
        parts, at = [], 0
        while at < len(body):
            part = body[at : at + self.chance.randint(1, 2000)]
            parts.append(b"%x\r\n" % len(part) + part + b"\r\n")
            at += len(part)
        parts.append(b"0\r\n\r\n")
        if self.chance.random() < 0.6:
            wrong = (b"-1\r\n", b"zz\r\n", b"ffffffffffffffffff\r\n", b"5;x=\xff\r\n", b"\r\n", b"")
            parts[self.chance.randrange(len(parts))] = self.chance.choice(wrong)
        head = framed(b"", length).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        if self.chance.random() < 0.2:
            head = head.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1)
        return head + b"".join(parts)

    def frames(self) -> bytes:
        """The frame of HTTP itself, damaged."""
        whole = framed(*body_of(self.arrays, True))
        head, _, body = whole.partition(b"\r\n\r\n")
        return damaged(head, self.chance) + b"\r\n\r\n" + body
