"""ONNX files as sources: read, brought to a known opset, shapes followed."""
