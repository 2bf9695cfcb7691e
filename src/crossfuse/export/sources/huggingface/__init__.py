"""Models of Hugging Face ``transformers``: loading, example inputs, and the context in which they
are traced.

`load` finds the class and reads safetensors, `inputs` makes inputs from the configuration,
`attention` puts the operator behind the library's attention interface, `patches` mends what can't
be traced, and `source` puts them together.
"""
