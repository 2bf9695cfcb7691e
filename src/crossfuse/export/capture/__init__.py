"""From a module to an ONNX graph: counted in eager execution, traced, decomposed, translated."""
