"""The Open Inference Protocol, against Triton's own client: it writes requests that we read, and
reads what we write."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossfuse import InputError
from crossfuse.serve.open_inference import DATATYPES, encode_outputs, parse_call

http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

ARRAYS = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
        elements={"allow_nan": False} if "float" in dtype else None,
    )
)


def requested(
    arrays: dict[str, np.ndarray], binary: bool, outputs: list[Any] | None = None
) -> tuple[bytes, int | None]:
    inputs = []
    for name, array in arrays.items():
        tensor = http.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return http.InferenceServerClient.generate_request_body(inputs, outputs=outputs, request_id="7")


@given(st.lists(ARRAYS, min_size=1, max_size=3), st.booleans())
def test_arrays_come_through(arrays: list[np.ndarray], binary: bool) -> None:
    if not binary:
        # Triton's client sends FP16 as bytes only, and JSON has no infinity.
        arrays = [np.nan_to_num(a) for a in arrays if a.dtype != np.float16]
    given = {f"x{i}": array for i, array in enumerate(arrays)}
    if not given:
        return
    call = parse_call(*requested(given, binary))
    assert call.identity == "7"
    for name, array in given.items():
        assert call.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(call.inputs[name], array)
    body, length = encode_outputs(call.inputs, call, model="m")
    result = http.InferenceServerClient.parse_response_body(body, header_length=length)
    assert result.get_response()["id"] == "7"
    for name, array in given.items():
        np.testing.assert_array_equal(result.as_numpy(name), array)


def test_wanted_outputs() -> None:
    arrays = {"a": np.float32([[1, 2]]), "b": np.int64([3])}
    outputs = [http.InferRequestedOutput("b", binary_data=False)]
    call = parse_call(*requested(arrays, True, outputs))
    body, length = encode_outputs(arrays, call, model="m")
    assert length is None
    assert [(o["name"], o["data"]) for o in json.loads(body)["outputs"]] == [("b", [3])]
    with pytest.raises(InputError, match="doesn't exist"):
        encode_outputs({"a": arrays["a"]}, call, model="m")


def test_what_json_cannot_say() -> None:
    call = parse_call(b'{"inputs": []}')
    with pytest.raises(InputError, match="isn't finite"):
        encode_outputs({"a": np.float32([np.nan])}, call, model="m")


GOOD = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
MALFORMED: list[Any] = [
    "[]",
    "{",
    '{"inputs": NaN}',
    "[" * 100_000,
    {},
    {"inputs": {}},
    {"inputs": [GOOD, GOOD]},
    {"inputs": [GOOD], "outputs": {}},
    {"inputs": [GOOD], "id": 7},
    {"inputs": [GOOD], "parameters": {"context_id": 7}},
    {"inputs": [GOOD], "parameters": {"binary_data_output": 1}},
    {"inputs": [GOOD | {"name": None}]},
    {"inputs": [GOOD | {"datatype": "BYTES"}]},
    {"inputs": [GOOD | {"datatype": "FP128"}]},
    {"inputs": [GOOD | {"shape": [3]}]},
    {"inputs": [GOOD | {"shape": [-2]}]},
    {"inputs": [GOOD | {"shape": [True, 2]}]},
    {"inputs": [GOOD | {"shape": [2.0]}]},
    {"inputs": [GOOD | {"shape": [1] * 99}]},
    {"inputs": [GOOD | {"shape": [2**62, 2**62]}]},
    {"inputs": [GOOD | {"data": [1, [2]]}]},
    {"inputs": [GOOD | {"data": ["a", "b"]}]},
    {"inputs": [GOOD | {"datatype": "INT8", "data": [1.5, 2]}]},
    {"inputs": [GOOD | {"datatype": "INT8", "data": [1, 200]}]},
    {"inputs": [GOOD | {"datatype": "UINT8", "data": [1, -1]}]},
    {"inputs": [GOOD | {"datatype": "BOOL", "data": [1, 2]}]},
    {"inputs": [GOOD | {"data": [10**400, 1]}]},
    {"inputs": [GOOD | {"parameters": {"binary_data_size": 8}}]},
    {"inputs": [GOOD | {"parameters": {"binary_data_size": -8}}]},
    {"inputs": [GOOD | {"parameters": {"shared_memory_region": "r"}}]},
]


@pytest.mark.parametrize("data", MALFORMED, ids=[str(i) for i in range(len(MALFORMED))])
def test_malformed_requests_are_refused_in_one_paragraph(data: Any) -> None:
    body = (data if isinstance(data, str) else json.dumps(data)).encode()
    with pytest.raises(InputError) as caught:
        parse_call(body)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@given(st.binary(max_size=64), st.integers(-2, 80))
def test_any_bytes_are_read_or_refused(body: bytes, length: int) -> None:
    with pytest.raises(InputError):
        parse_call(body, length)


@given(st.data())
def test_damaged_requests_are_read_or_refused(data: st.DataObject) -> None:
    body, length = requested(
        {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "m": np.array([True, False])}, True
    )
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    for attempt in (bytes(damaged), bytes(damaged[:cut])):
        with contextlib.suppress(InputError):
            parse_call(attempt, length)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [0, 10**30], []),
        ("FP32", [0, 1 << 50], []),
        ("FP32", [1 << 20, 1 << 20, 0], []),
        ("FP32", [1], [1e39]),
        ("FP16", [1], [65600]),
        ("FP64", [1], [float("1e308") * 10]),
        ("INT64", [1], [1 << 63]),
        ("INT64", [1], [10**400]),
        ("FP32", [1], [10**400]),
        ("INT8", [2], [1, 1.5]),
        ("BOOL", [1], [2]),
        ("FP32", [2], [[1], [1, 2]]),
        ("FP32", [1], [{}]),
        ("FP32", [1.0], [1]),
        ("FP32", [True], [1]),
    ],
)
def test_numbers_that_are_none_or_too_large(datatype: str, shape: list[Any], data: Any) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    text = json.dumps({"inputs": [tensor]}).replace("Infinity", "1e999")
    with pytest.raises(InputError):
        parse_call(text.encode())
    of_bytes = tensor | {"parameters": {"binary_data_size": 0}}
    del of_bytes["data"]
    header = json.dumps({"inputs": [of_bytes]}).encode()
    if 0 in shape:
        with pytest.raises(InputError):
            parse_call(header, len(header))


def test_the_largest_numbers_of_a_type_are_taken() -> None:
    for datatype, value in (("FP16", 65504), ("FP32", 3.4028234e38), ("INT64", (1 << 63) - 1)):
        tensor = {"name": "x", "datatype": datatype, "shape": [1], "data": [value]}
        call = parse_call(json.dumps({"inputs": [tensor]}).encode())
        assert float(call.inputs["x"][0]) == pytest.approx(value)
