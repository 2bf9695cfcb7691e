"""What a TensorRT engine's own layers say of linear layers: which types each multiplies.

A layer's product has the name of its ONNX node among those that an engine's layer came from. Of the
layers with that name one multiplies: by its kind (``gemm``, ``correlation``, ``deconv``), or as a
fusion whose name has a product in it (``__myl_FcAdd``). Its operands' types are what the layer is.
Where it is given floats, and another layer made these of codes that are constants, the engine
widens the weights at every run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from crossfuse.core.linear_ledger import FLOATS, FP8, INT8, Became, weights_in
from crossfuse.core.tensorrt_layers import Layer

__all__ = ["linear_types"]

_PRODUCT_KIND = re.compile(r"gemm|matmul|matrix|correlation|conv", re.IGNORECASE)
_PRODUCT_PART = re.compile(r"(?:_|[a-z])(?:Fc|Gemm|Matm|Conv(?!e))(?![a-z])")
_CODES = {"int8": INT8, "fp8": FP8}


def linear_types(layers: Iterable[Layer], products: Mapping[str, str | None]) -> dict[str, Became]:
    """What linear layers became; without those that no layer of the engine tells of.

    Args:
        layers: of the engine.
        products: name of a product's ONNX node → that of the node that dequantises its weights, if
            there is one.
    """
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        for node in layer.nodes:
            by_node.setdefault(node, []).append(layer)
    found: dict[str, Became] = {}
    for product, widened in products.items():
        kinds = [_kind(one) for one in by_node.get(product, ()) if _multiplies(one)]
        known = [one for one in kinds if one is not None]
        if known:
            # Of several, as of several profiles, the one in floats counts.
            worst = next((one for one in known if one.words in FLOATS), known[0])
            apart = by_node.get(widened, ()) if widened is not None else ()
            found[product] = _widened(worst, apart)
    return found


def _multiplies(layer: Layer) -> bool:
    if layer.fused:
        return False
    fusion = _PRODUCT_PART.search(layer.kernel) and layer.kernel.startswith("_")
    return bool(fusion or _PRODUCT_KIND.search(layer.kind))


def _kind(layer: Layer) -> Became | None:
    """What a layer that multiplies is; None where it does not tell its types."""
    if not layer.inputs:
        return None
    given, *others = (*layer.inputs, *layer.constants)
    weights = next((one for one in others if one in _CODES), None)
    if given in _CODES and weights == given:
        return Became(_CODES[given])
    if given not in FLOATS:
        floats = next((one for one in others if one in FLOATS), None)
        return None if floats is None else Became(floats)
    return Became(given if weights is None else _weights_alone(weights, given))


def _widened(found: Became, apart: Sequence[Layer]) -> Became:
    """A product of floats whose weights another layer made of codes."""
    if found.words not in FLOATS:
        return found
    codes = next((one for layer in apart for one in layer.constants if one in _CODES), None)
    return found if codes is None else Became(_weights_alone(codes, found.words))


def _weights_alone(codes: str, computed: str) -> str:
    return (
        weights_in(8, computed) if codes == "int8" else f"weights {codes}, computed in {computed}"
    )
