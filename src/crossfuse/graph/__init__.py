"""Helpers over ``onnx_ir`` that export, targets and parity share."""
