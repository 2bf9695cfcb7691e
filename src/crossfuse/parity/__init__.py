"""Parity: does a target compute what the eager model computes?

`shape_points` chooses shapes, `eager` runs the module at them (float64 and float32), `reference`
keeps inputs and results in the bundle, `policy` says what an error may be, `report` judges a
target's outputs, `session_check` runs a session against the reference, and `bisect` finds where a
target begins to differ. `eager` and what it stands on need PyTorch; `bisect` needs `onnx_ir`.
"""
