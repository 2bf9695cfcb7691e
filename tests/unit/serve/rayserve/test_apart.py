"""Long JSON is read and written in a process of its own, with the same results and refusals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed")

from crossfuse.errors import InputError
from crossfuse.serve.limits import Limits
from crossfuse.serve.open_inference import Call, encode_outputs, parse_call
from crossfuse.serve.rayserve.apart import LONG, Apart

NUMBERS = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)


def body_of(array: np.ndarray) -> bytes:
    tensor = {"name": "a", "datatype": "FP32", "shape": [array.size], "data": array.tolist()}
    return json.dumps({"inputs": [tensor], "id": "x"}).encode()


def test_long_json_takes_another_processs_time() -> None:
    """Eight megabytes of it: here, less than half of the work is done. A process that died is
    replaced, a refusal is the same."""
    body = body_of(NUMBERS)
    assert len(body) > 100 * LONG

    async def work() -> tuple[Call, float]:
        apart = Apart(Limits(), "m")
        first = await apart.parse(body_of(NUMBERS[:10_000]), None)
        assert first.inputs["a"].size == 10_000
        start = time.process_time()
        call = await apart.parse(body, None)
        took = time.process_time() - start
        assert apart._pool is not None
        (pid,) = apart._pool._processes
        os.kill(pid, signal.SIGKILL)
        again = await apart.parse(body, None)
        np.testing.assert_array_equal(again.inputs["a"], call.inputs["a"])
        with pytest.raises(InputError, match="not valid JSON"):
            await apart.parse(body[:-1], None)
        content, length = await apart.encode({"y": NUMBERS}, call)
        assert (content, length) == encode_outputs({"y": NUMBERS}, call, model="m")
        apart.close()
        return call, took

    start = time.process_time()
    here = parse_call(body)
    alone = time.process_time() - start
    call, took = asyncio.run(work())
    np.testing.assert_array_equal(call.inputs["a"], here.inputs["a"])
    assert call.identity == "x"
    assert took < alone / 2


def test_short_ones_are_read_here() -> None:
    async def work() -> Any:
        apart = Apart(Limits(max_json_bytes=LONG + 1000), "m")
        call = await apart.parse(body_of(NUMBERS[:5]), None)
        with pytest.raises(InputError, match="too long"):
            await apart.parse(bytes(LONG + 1001), None)
        binary = Call({}, None, None, None, True)
        content, length = await apart.encode({"y": NUMBERS}, binary)
        assert (content, length) == encode_outputs({"y": NUMBERS}, binary, model="m")
        assert await apart.encode({"y": NUMBERS[:3]}, call) == encode_outputs(
            {"y": NUMBERS[:3]}, call, model="m"
        )
        assert apart._pool is None
        return call

    assert asyncio.run(work()).inputs["a"].tolist() == NUMBERS[:5].tolist()
