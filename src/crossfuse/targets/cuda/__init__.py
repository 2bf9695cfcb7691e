"""Graphs for ONNX Runtime's CUDA provider.

`lowering` chooses the forms, `kernels` says which attention kernel each gets, `operators` what the
provider has no kernel for, `padding` what the context stage prepares for the queries.
"""
