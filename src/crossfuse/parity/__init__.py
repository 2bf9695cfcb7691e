"""Parity: does a target compute what the eager model computes?

`points` chooses shapes, `eager` runs the module at them (float64 and float32), `reference` keeps
inputs and results in the bundle, `parity` holds the policy and the report, `check` runs a session
against it. Only `eager` needs PyTorch.
"""
