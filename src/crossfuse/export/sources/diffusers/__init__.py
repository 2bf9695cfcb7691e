"""Models of ``diffusers``: loading, example inputs, and the context in which they are traced.

`locate` finds a model's folder in a pipeline's, `load` its class and safetensors. `autoencoder`
takes the halves apart. `input_rules` makes inputs, a rule per parameter's name, into an
`input_plan` of the first form in which the model runs. `patches` mends what can't be traced, and
`spec` puts them together.
"""
