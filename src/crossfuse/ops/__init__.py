"""``crossfuse.FusedAttention``: the one attention node of the pipeline.

`contract` holds its names, attributes and shape rules (no dependency), `reference` its meaning in
float64 NumPy, `torch_op` the PyTorch operator, `onnx_schema` the ONNX schema, and `onnx_function`
its body in standard ONNX operators.
"""
