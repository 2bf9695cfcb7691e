"""From the graph with ``FusedAttention`` nodes to what each target executes.

`targets` names the targets, `attention` holds what every lowering of the operator shares (fan-out
folding, masks), and one file per engine lowers: `portable` and `onnxruntime`.
"""
