"""TensorRT and TensorRT-RTX engines, with proof.

`lowering` writes attention so that TensorRT must run it on a fused kernel or fail; `libraries`
knows the two libraries and `profiles` turns dynamic ranges into optimization profiles; `worker`
builds in a process of its own, which `engines` starts; what each attention became is read from the
engine's own layers (:mod:`crossfuse.core.tensorrt_layers`); `cache` keeps engines between builds.
"""
