"""Where models come from: a factory, a checkpoint of `transformers` or `diffusers`, an ONNX
file."""
