"""Damage to ONNX graphs that knows their parts: attributes, operators, edges, weights, boundaries,
versions, and what never comes to an end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from campaigns.operations import damaged

Chance = random.Random
INTEGERS = (0, -1, 1, 2, 3, 7, 64, 65, 1000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e38, 1e-40)
OPERATORS = (
    "Attention", "Add", "Cast", "Clip", "Concat", "ConstantOfShape", "Conv", "CumSum", "Div",
    "Einsum", "Expand", "Gather", "GatherElements", "GatherND", "Gemm", "GRU", "Identity", "If",
    "LSTM", "LayerNormalization", "Loop", "MatMul", "Mod", "NonZero", "OneHot", "Pad", "Pow",
    "QuantizeLinear", "Range", "ReduceSum", "Reshape", "Resize", "Scan", "ScatterElements",
    "ScatterND", "Slice", "Softmax", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
    "Where", "STFT", "DFT", "MaxPool", "AveragePool", "ConvTranspose", "GroupNormalization",
    "RoiAlign", "NonMaxSuppression", "Unique", "Compress", "DepthToSpace", "SpaceToDepth",
    "MelWeightMatrix", "HannWindow", "Bernoulli", "Trilu", "EyeLike", "LpPool", "Upsample",
    "RotaryEmbedding", "RMSNormalization", "MatMulInteger", "DynamicQuantizeLinear",
)  # fmt: skip
MICROSOFT = (
    "MultiHeadAttention", "Attention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention",
    "SkipLayerNormalization", "MatMulNBits", "DynamicQuantizeMatMul", "FusedMatMul", "QAttention",
    "PackedAttention", "BiasGelu", "RotaryEmbedding", "FusedConv", "MatMulIntegerToFloat",
    "EmbedLayerNormalization", "BeamSearch", "LongformerAttention", "QMoE", "MoE", "FusedGemm",
    "SkipSimplifiedLayerNormalization", "NGramRepeatBlock", "QLinearConv", "CropAndResize",
    "GatherBlockQuantized", "QuickGelu", "GridSample", "MurmurHash3", "ExpandDims", "Inverse",
    "TransposeMatMul", "WordConvEmbedding", "SparseAttention", "DequantizeLinear",
)  # fmt: skip


def graphs_of(graph: GraphProto) -> list[GraphProto]:
    """A graph, and those within it."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found += graphs_of(attribute.g)
    return found


def a_node(model: ModelProto, chance: Chance) -> NodeProto:
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    return chance.choice(nodes)


def attributes(model: ModelProto, chance: Chance) -> None:
    """A number, list or type of an attribute, or a text."""
    held = [n for g in graphs_of(model.graph) for n in g.node if n.attribute]
    if not held:
        return extra_attributes(model, chance)
    attribute = chance.choice(chance.choice(held).attribute)
    how = chance.randrange(6)
    if how == 0:
        attribute.type = chance.randrange(15)
    elif how == 1:
        attribute.ints.append(chance.choice(INTEGERS))
    elif how == 2 and attribute.ints:
        del attribute.ints[chance.randrange(len(attribute.ints)) :]
    elif attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(INTEGERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = chance.choice(FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = chance.choice((b"", b"\xff\xfe", b"reflect", b"x" * 5000))
    else:
        attribute.i = chance.choice(INTEGERS)
    return None


def extra_attributes(model: ModelProto, chance: Chance) -> None:
    """One that the operator has or may have, of another node's or a known name."""
    names = (
        "axis", "axes", "num_heads", "q_num_heads", "kv_num_heads", "group", "perm", "to", "bits",
        "block_size", "k", "blocksize", "hidden_size", "is_causal", "softmax_precision", "scale",
        "rotary_embedding_dim", "num_outputs", "kernel_shape", "strides", "dilations", "pads",
        "output_shape", "qk_matmul_output_mode", "local_window_size", "body", "epsilon",
        "direction", "allowzero", "keepdims", "exclusive", "layout", "mode", "size", "seed",
    )  # fmt: skip
    node, name = a_node(model, chance), chance.choice(names)
    value: Any = chance.choice((*INTEGERS, [chance.choice(INTEGERS)] * chance.randint(1, 5)))
    if chance.random() < 0.15:
        value = chance.choice((1.0, "x", *FLOATS))
    for at in reversed(range(len(node.attribute))):
        if node.attribute[at].name == name and chance.random() < 0.8:
            del node.attribute[at]
    node.attribute.append(helper.make_attribute(name, value))


def operators(model: ModelProto, chance: Chance) -> None:
    """Another operator, of the standard or of ONNX Runtime's own."""
    node = a_node(model, chance)
    if chance.random() < 0.6:
        node.op_type, node.domain = chance.choice(OPERATORS), ""
        return
    node.op_type, node.domain = chance.choice(MICROSOFT), "com.microsoft"
    if not any(one.domain == "com.microsoft" for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def edges(model: ModelProto, chance: Chance) -> None:
    """Inputs and outputs of nodes: others', none, twice, more, cycles."""
    node = a_node(model, chance)
    names = [name for g in graphs_of(model.graph) for n in g.node for name in (*n.input, *n.output)]
    names += [one.name for one in model.graph.initializer] + ["", "nothing"]
    side = node.input if node.input and chance.random() < 0.75 else node.output
    how = chance.randrange(5)
    if how == 0 and side:
        del side[chance.randrange(len(side))]
    elif how == 1:
        side.extend([chance.choice(names)] * chance.choice((1, 1, 3, 40)))
    elif side:
        side[chance.randrange(len(side))] = chance.choice(names)


def initializers(model: ModelProto, chance: Chance) -> None:
    """Shapes, types and data of weights in the graph."""
    held = [one for graph in graphs_of(model.graph) for one in graph.initializer]
    if not held:
        return edges(model, chance)
    tensor = chance.choice(held)
    how = chance.randrange(5)
    if how == 0:
        tensor.data_type = chance.randrange(26)
    elif how == 1 and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(INTEGERS)
    elif how == 2:
        tensor.dims.append(chance.choice(INTEGERS))
    elif how == 3 and tensor.raw_data:
        tensor.raw_data = damaged(tensor.raw_data, chance)
    else:
        values = [chance.choice(INTEGERS) for _ in range(int(np.prod(tensor.dims[:2] or [1])) % 65)]
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.INT64, [len(values)], values))
    return None


def external(model: ModelProto, chance: Chance) -> None:
    """Where weights are: other files, paths out of the folder, beyond the end."""
    held = [
        one
        for graph in graphs_of(model.graph)
        for one in graph.initializer
        if one.data_location == TensorProto.EXTERNAL
    ]
    if not held:
        return initializers(model, chance)
    tensor = chance.choice(held)
    value = {
        "location": (
            "../canary.bin", "../../canary.bin", "canary", "./weights.bin", "manifest.json",
            "reference.npz", "", "/etc/passwd", "/proc/self/mem", "/dev/zero", "weights.bin/",
            "weights.bin\0x", "*/_ORT_MEM_ADDR_/*", "nothing.bin", "WEIGHTS.BIN",
        ),
        "offset": ("-1", "4", "2", "99999999", "18446744073709551615", "0x10", "", "1e3"),
        "length": ("-1", "0", "4", "99999999", "18446744073709551615", "", "7"),
    }  # fmt: skip
    key = chance.choice(list(value))
    found = next((one for one in tensor.external_data if one.key == key), None)
    if found is None or chance.random() < 0.2:
        found = tensor.external_data.add()
        found.key = key
    found.value = chance.choice(value[key])
    return None


def boundaries(model: ModelProto, chance: Chance) -> None:
    """Inputs, outputs and values of the graph: types, shapes, names."""
    graph = model.graph
    value = chance.choice([*graph.input, *graph.output, *graph.value_info])
    how = chance.randrange(6)
    if how == 0:
        value.type.tensor_type.elem_type = chance.randrange(26)
    elif how == 1:
        value.type.tensor_type.shape.dim.add().dim_value = chance.choice(INTEGERS)
    elif how == 2:
        value.name = chance.choice(("", "x", graph.input[0].name, graph.output[0].name))
    elif how == 3:
        side = graph.output if chance.random() < 0.6 else graph.input
        side.add().CopyFrom(chance.choice([*graph.input, *graph.output]))
    elif how == 4 and value.type.tensor_type.shape.dim:
        dim = chance.choice(value.type.tensor_type.shape.dim)
        if chance.random() < 0.5:
            dim.dim_value = chance.choice(INTEGERS)
        else:
            dim.dim_param = chance.choice(("batch", "length", "", "9" * 40))
    else:
        value.type.Clear()
    return None


def versions(model: ModelProto, chance: Chance) -> None:
    """Versions of the file and of its operators."""
    if chance.random() < 0.3:
        model.ir_version = chance.choice((0, 1, 3, 13, 99, 2**40))
    else:
        chance.choice(model.opset_import).version = chance.choice((0, 1, 7, 13, 23, 99, 2**40))


def bombs(model: ModelProto, chance: Chance) -> None:
    """Values and loops without end, functions of functions."""
    graph = model.graph
    output = chance.choice([n for n in graph.node if n.output])
    made = f"bomb{chance.random()}"
    how = chance.randrange(5)
    if how < 3:
        size = chance.choice((2**31, 2**33, 2**40, 2**62))
        shape = helper.make_tensor(f"{made}s", TensorProto.INT64, [1], [size])
        graph.initializer.append(shape)
        kind = ("ConstantOfShape", "Expand", "Tile")[how]
        inputs = [shape.name] if how == 0 else [graph.input[0].name, shape.name]
        graph.node.insert(0, helper.make_node(kind, inputs, [made]))
        if chance.random() < 0.5:
            output.input.append(made)
        else:
            graph.output.add().name = made
    elif how == 3:
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["d"])],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
        )
        graph.initializer.append(helper.make_tensor(f"{made}n", TensorProto.INT64, [], [2**62]))
        graph.initializer.append(helper.make_tensor(f"{made}c", TensorProto.BOOL, [], [True]))
        node = helper.make_node("Loop", [f"{made}n", f"{made}c"], [], body=body)
        graph.node.insert(0, node)
    else:
        for depth in range(chance.choice((2, 12, 30))):
            calls = [
                helper.make_node(f"f{depth + 1}" if depth else "Identity", ["x"], ["y"], domain="q")
                for _ in range(10)
            ]
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("q", 1)]
            model.functions.append(
                helper.make_function("q", f"f{depth}", ["x"], ["y"], calls, opsets)
            )
        model.opset_import.append(helper.make_opsetid("q", 1))
        graph.node.append(helper.make_node("f0", [graph.input[0].name], [made], domain="q"))


GRAPHS: tuple[Callable[[ModelProto, Chance], None], ...] = (
    attributes, attributes, extra_attributes, operators, edges, initializers, external, boundaries,
    versions, bombs,
)  # fmt: skip


def damaged_graph(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """A graph's file, damaged in one to three ways; and which."""
    model = onnx.load_from_string(data)
    ways = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        way = chance.choice(GRAPHS)
        try:
            way(model, chance)
        except (ValueError, TypeError, IndexError):
            continue  # what protobuf itself refuses can't be written
        ways.append(way.__name__)
    return model.SerializeToString(), "+".join(ways)
