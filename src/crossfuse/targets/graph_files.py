"""Graph files that share their weights: large tensors once in ``weights.bin``, referred to by every
graph.

The fused graph's weights are written first. A target's graph keeps referring to them; tensors that
its lowering made anew go to a file of its own. Offsets are 64-bit, so there is no limit of 2 GB.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

from crossfuse.bundle.graph_checks import require_safe_graph
from crossfuse.bundle.store import Bundle, check_name
from crossfuse.errors import BundleError

__all__ = ["Places", "load_graph", "save_graph"]

_INLINE_LIMIT = 1024
_ALIGNMENT = 64


Places = dict[tuple[str, bytes], tuple[str, int, int]]
"""Type and SHA-256 of a tensor → file, offset and size."""


def save_graph(
    model: ir.Model, graph: Path, weights: Path, places: Places | None = None
) -> tuple[str, ...]:
    """Write a graph beside its weights.

    Tensors of at least 1 KiB that are not in a file of this folder yet go to ``weights`` (equal
    ones once), which is not created where there are none. The model's tensors then refer to the
    files. ``places`` remembers what was written, for further graphs of the folder.

    Returns:
        names of the weight files that the graph needs.
    """
    used: set[str] = set()
    places = {} if places is None else places
    offset, handle = 0, None
    try:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) == graph.parent:
                used.add(str(tensor.location))
                continue
            if (
                tensor is None
                or tensor.nbytes < _INLINE_LIMIT
                or tensor.dtype == ir.DataType.STRING
            ):
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = ir.tensor(tensor.numpy(), name=value.name)
                continue
            data = tensor.tobytes()
            key = (tensor.dtype.name, hashlib.sha256(data).digest())
            if key not in places:
                handle = handle or weights.open("wb")
                offset += handle.write(b"\0" * (-offset % _ALIGNMENT))
                places[key] = (weights.name, offset, len(data))
                offset += handle.write(data)
            file, start, length = places[key]
            used.add(file)
            value.const_value = ir.ExternalTensor(
                file,
                start,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=graph.parent,
            )
    finally:
        if handle is not None:
            handle.close()
    graph.write_bytes(ir.to_proto(model).SerializeToString())
    return tuple(sorted(used))


def load_graph(bundle: Bundle, name: str) -> ir.Model:
    """Read a verified graph of a bundle; its weights stay on disk until used.

    Raises:
        BundleError: a damaged file, or a graph whose weights lie outside the bundle.
    """
    (path,) = bundle.verified([name])
    require_safe_graph(path, bundle.manifest.files)
    model = ir.load(path)
    bundle.require_unreplaced()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            entry = bundle.manifest.files.get(check_name(str(tensor.location), path))
            end = (tensor.offset or 0) + (tensor.length or 0)
            if entry is None or end > entry.size:
                raise BundleError(
                    "a graph refers to weights that the bundle doesn't hold",
                    where=path,
                    got=tensor.location,
                )
    return model
