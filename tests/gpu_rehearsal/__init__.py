"""The host side of the GPU path, executed on machines without a GPU: on libraries that stand in for
CUDA's."""
