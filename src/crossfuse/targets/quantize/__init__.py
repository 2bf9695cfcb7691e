"""Linear layers in integers: products with weights in int8 or int4, attention in fp32 as it was.

`layers` finds the products with weights; `rules` says which stay in fp32, and why; `rounding`
rounds weights; `rewrite` puts integer products in their place; `stages` does it for all stages of a
bundle; `engine_graph` reads from ONNX Runtime's optimised graph what each became; `sensitivity`
measures what int8 does to each layer's results, and `layer_search` looks for the fewest layers that
have to stay; `layer_times` measures what these cost.
"""
