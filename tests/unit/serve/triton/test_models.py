"""What Triton is told of the model that generates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from crossfuse.core.target import require_target
from crossfuse.serve.triton.models import TritonOptions, generation_model
from unit.runtime.toy_decoder import toy_session


def test_the_model_that_generates() -> None:
    """Texts, ids and tensors that come flat, each of which a request may leave out; any number of
    responses."""
    session = toy_session()
    manifest = SimpleNamespace(stages=session.stages, decode=session.decode)
    bundle: Any = SimpleNamespace(manifest=manifest)
    options = TritonOptions(slots=3, instances=2)
    text = generation_model(bundle, "m", require_target("ort-cpu"), options).text()
    assert text.startswith('name: "m-generate"\nbackend: "python"\nmax_batch_size: 0\n')
    assert "model_transaction_policy { decoupled: true }" in text
    for name, kind in (("text_input", "STRING"), ("ids", "INT64"), ("image", "FP32")):
        dims = "1" if kind == "STRING" else "-1"
        line = f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ] optional: true }}'
        assert line in text
    for name, kind, dims in (("text_output", "STRING", "1"), ("tokens", "INT64", "-1"),
                             ("log_probs", "FP32", "-1"), ("ended", "BOOL", "1")):  # fmt: skip
        assert f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ] }}' in text
    assert 'parameters { key: "slots" value: { string_value: "3" } }' in text
    assert "count: 2" in text
    assert "dynamic_batching" not in text
