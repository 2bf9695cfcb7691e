"""Where models come from: a factory, a checkpoint of `transformers`, an ONNX file."""
