"""Operators of ONNX Runtime's own (``com.microsoft``), which its optimizers leave in files, in
terms of ONNX's operators.

``expand`` replaces them; ``attention``, ``operators`` and ``quantized`` say what each one means.
"""
