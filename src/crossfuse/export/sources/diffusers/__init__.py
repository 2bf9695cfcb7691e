"""Models of Hugging Face ``transformers``: loading, example inputs, and the context in which they
are traced.

`load` finds the class and reads safetensors. `input_rules` makes inputs from the configuration: a
rule (`image_rules`, `sequence_rules`) puts them into an `input_plan`, with `input_fillers` for what
they hold. `attention_interface` puts the operator behind the library's attention, `patches` mends
what can't be traced, `adapters` what a deployment has no use for, and `spec` puts them together.
"""
